/* ring: every rank passes blocks to the next one and checks every byte of what it gets.
 *
 *   mpirun … ring SECONDS BYTES [MARKER [PAUSE]]
 *
 * Runs for SECONDS and a little (rank 0 decides, all follow), then rank 0 prints one line of JSON:
 * iterations, errors, and the longest time that any iteration took on any rank, in seconds: what
 * the program noticed. With MARKER, rank 0 creates that file after the first iteration, so that a
 * harness knows that traffic flows, and ends early once somebody has removed it. Meanwhile it
 * appends a line about every tenth of a second: iterations so far, the longest one since the line
 * before, in seconds, and errors so far, all as rank 0 sees them.
 *
 * With PAUSE, in microseconds, every rank lets go of its processor for as long before it exchanges
 * again: a program that leaves some of an emulated guest to others. */
#define _GNU_SOURCE
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static uint8_t expected(int sender, long iteration, size_t offset)
{
    return (uint8_t)((uint64_t)sender * 131 + (uint64_t)iteration * 31 + offset * 7);
}

static void fill(uint8_t *block, size_t size, int sender, long iteration)
{
    for (size_t i = 0; i < size; i++)
        block[i] = expected(sender, iteration, i);
}

struct journal {
    FILE *file; /* NULL: none is kept */
    double written, longest;
};

/* Notes one iteration that took this long; a line is written when it is time for one. */
static void note(struct journal *journal, double now, double took, long iterations, long errors)
{
    if (took > journal->longest)
        journal->longest = took;
    if (!journal->file || now - journal->written < 0.1)
        return;
    fprintf(journal->file, "%ld %.6f %ld\n", iterations, journal->longest, errors);
    fflush(journal->file);
    journal->written = now;
    journal->longest = 0;
}

static long count_errors(const uint8_t *block, size_t size, int sender, long iteration)
{
    long errors = 0;
    for (size_t i = 0; i < size; i++)
        errors += block[i] != expected(sender, iteration, i);
    return errors;
}

int main(int argc, char **argv)
{
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (argc < 3) {
        if (rank == 0)
            fprintf(stderr, "usage: ring SECONDS BYTES [MARKER [PAUSE]]\n");
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    const double seconds = atof(argv[1]);
    const size_t bytes = (size_t)atol(argv[2]);
    const useconds_t pause_us = argc > 4 ? (useconds_t)atol(argv[4]) : 0;
    const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
    uint8_t *out = malloc(bytes), *in = malloc(bytes);
    if (!out || !in)
        MPI_Abort(MPI_COMM_WORLD, 1);

    long iterations = 0, errors = 0;
    double longest = 0;
    struct journal journal = {0};
    MPI_Barrier(MPI_COMM_WORLD);
    const double start = MPI_Wtime();
    for (int go_on = 1; go_on; iterations++) {
        if (pause_us > 0)
            usleep(pause_us);
        const double before = MPI_Wtime();
        fill(out, bytes, rank, iterations);
        MPI_Sendrecv(out, (int)bytes, MPI_BYTE, next, 1, in, (int)bytes, MPI_BYTE, previous, 1,
                     MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        errors += count_errors(in, bytes, previous, iterations);
        go_on = before - start < seconds;
        if (iterations > 0 && rank == 0 && argc > 3 && access(argv[3], F_OK) != 0)
            go_on = 0;
        MPI_Bcast(&go_on, 1, MPI_INT, 0, MPI_COMM_WORLD);
        const double took = MPI_Wtime() - before;
        if (iterations == 0) { /* which connects */
            if (rank == 0 && argc > 3 && !(journal.file = fopen(argv[3], "a")))
                MPI_Abort(MPI_COMM_WORLD, 1);
            continue;
        }
        if (took > longest)
            longest = took;
        note(&journal, MPI_Wtime() - start, took, iterations, errors);
    }

    long all_errors = 0;
    double longest_of_all = 0;
    MPI_Reduce(&errors, &all_errors, 1, MPI_LONG, MPI_SUM, 0, MPI_COMM_WORLD);
    MPI_Reduce(&longest, &longest_of_all, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    if (rank == 0)
        printf("{\"iterations\": %ld, \"errors\": %ld, \"longest_s\": %.6f}\n", iterations,
               all_errors, longest_of_all);
    if (journal.file)
        fclose(journal.file);
    free(out);
    free(in);
    MPI_Finalize();
    return all_errors != 0;
}
