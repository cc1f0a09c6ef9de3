"""An mpi4py program that asks the shim about itself, and defers a switch.

usage: aware.py STOPFILE DEFERFILE
Exchanges verified messages until STOPFILE exists. While DEFERFILE exists, rank 1 is in a section in
which it does not want to be disturbed. Prints "TOLD <rank> <number> <transport> <transports>" after
each switch, "DEFERS" and "ALLOWS" at the ends of a section, and "OK <rounds>" at the end.
"""

import sys
from contextlib import ExitStack
from pathlib import Path

from mpi4py import MPI

from kawarimi_ompi import program

world = MPI.COMM_WORLD
rank, ranks = world.rank, world.size
stop, defer = map(Path, sys.argv[1:3])


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")  # in one piece
    sys.stdout.flush()


def told(exchange: program.Exchange) -> None:
    assert 0 < exchange.longest_gap_s <= exchange.stall_s < 60
    assert exchange == program.last_switch()
    say("TOLD", rank, exchange.number, exchange.transport, sorted(program.transports().items()))


def exchange_with_neighbours(number: int) -> None:
    sent = bytes([number % 251, rank]) * (1 + number * 997 % 100_000)
    received = world.sendrecv(sent, (rank + 1) % ranks, source=(rank - 1) % ranks)
    expected = bytes([number % 251, (rank - 1) % ranks]) * (1 + number * 997 % 100_000)
    if received != expected:
        world.Abort(3)


assert program.last_switch() is None
say("LOADED", rank, program.loaded(), repr(program.refusal()))
program.on_switch(told)
section = ExitStack()
number, go, inside = 0, True, False
while go:
    exchange_with_neighbours(number)
    number += 1
    go, wanted = world.bcast((not stop.exists(), defer.exists()))
    if rank == 1 and wanted != inside:
        if wanted:
            section.enter_context(program.not_now("thinks"))
        else:
            section.close()
        inside = wanted
        say("DEFERS" if inside else "ALLOWS")
if rank == 0:
    say("OK", number)
