/* Messages of one size around a ring, until told to stop.
 *
 * usage: exchange STOPFILE BYTES [UNEXPECTED]
 *
 * With UNEXPECTED, every rank is sent as many bytes first, in messages of 4 KiB, which it receives at
 * the end only.
 */
#include <mpi.h>
#include <stdlib.h>
#include <unistd.h>

enum { BLOCK = 4096, EARLY = 2 };

static char block[BLOCK];

static void receive_early(int count, int from) {
    for (int i = 0; i < count; i++) {
        MPI_Recv(block, BLOCK, MPI_BYTE, from, EARLY, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
}

int main(int argc, char **argv) {
    int rank, ranks, go = 1, size = argc > 2 ? atoi(argv[2]) : 8;
    int early = (argc > 3 ? atoi(argv[3]) : 0) / BLOCK;
    MPI_Request *requests = calloc((size_t)early + 1, sizeof *requests);
    char *in = malloc((size_t)size), *out = calloc((size_t)size, 1);

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (in == NULL || out == NULL || requests == NULL) {
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    for (int i = 0; i < early; i++) {
        MPI_Isend(block, BLOCK, MPI_BYTE, (rank + 1) % ranks, EARLY, MPI_COMM_WORLD, &requests[i]);
    }
    for (unsigned round = 0; go; round++) {
        MPI_Sendrecv(out, size, MPI_BYTE, (rank + 1) % ranks, 1, in, size, MPI_BYTE,
                     (rank + ranks - 1) % ranks, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        if (round % 16 == 0) {
            go = access(argv[1], F_OK) != 0;
            MPI_Bcast(&go, 1, MPI_INT, 0, MPI_COMM_WORLD);
        }
    }
    receive_early(early, (rank + ranks - 1) % ranks);
    MPI_Waitall(early, requests, MPI_STATUSES_IGNORE);
    free(requests);
    free(in);
    free(out);
    MPI_Finalize();
    return 0;
}
