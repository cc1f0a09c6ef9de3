/* Messages of one size around a ring, until told to stop.
 *
 * usage: exchange STOPFILE BYTES
 */
#include <mpi.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int rank, ranks, go = 1, size = argc > 2 ? atoi(argv[2]) : 8;
    char *in = malloc((size_t)size), *out = calloc((size_t)size, 1);

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (in == NULL || out == NULL) {
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    for (unsigned round = 0; go; round++) {
        MPI_Sendrecv(out, size, MPI_BYTE, (rank + 1) % ranks, 1, in, size, MPI_BYTE,
                     (rank + ranks - 1) % ranks, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        if (round % 16 == 0) {
            go = access(argv[1], F_OK) != 0;
            MPI_Bcast(&go, 1, MPI_INT, 0, MPI_COMM_WORLD);
        }
    }
    free(in);
    free(out);
    MPI_Finalize();
    return 0;
}
