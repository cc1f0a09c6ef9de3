/* Messages around a ring, of sizes on both sides of ob1's limits, until told to stop.
 *
 * usage: exchange STOPFILE
 */
#include <mpi.h>
#include <stdlib.h>
#include <unistd.h>

enum { LARGEST = 1 << 20 };

static char in[LARGEST], out[LARGEST];

int main(int argc, char **argv) {
    static const int sizes[] = {8, 4096, 65536, LARGEST};
    int rank, ranks, go = 1;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    for (unsigned round = 0; go; round++) {
        int size = sizes[round % (sizeof sizes / sizeof sizes[0])];

        MPI_Sendrecv(out, size, MPI_BYTE, (rank + 1) % ranks, 1, in, size, MPI_BYTE,
                     (rank + ranks - 1) % ranks, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        if (round % 16 == 0) {
            go = access(argv[1], F_OK) != 0;
            MPI_Bcast(&go, 1, MPI_INT, 0, MPI_COMM_WORLD);
        }
    }
    MPI_Finalize();
    return 0;
}
