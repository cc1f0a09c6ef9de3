/* A job that spawns another one and talks to it until told to stop.
 *
 * usage: spawn STOPFILE [ENDFILE]
 * Prints "CONNECTED" once messages pass, "DISCONNECTED" when the jobs have parted, and "OK" at the
 * end. With ENDFILE, the spawning job then communicates by itself until that exists.
 */
#include "verified.h"

#include <unistd.h>

static void go_on_alone(const char *end_file, int rank) {
    int go = 1, ranks, sum;

    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    while (go) {
        MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
        if (sum != ranks * (ranks - 1) / 2) {
            die("sum", rank, rank, 0, 0);
        }
        go = access(end_file, F_OK) != 0;
        MPI_Bcast(&go, 1, MPI_INT, 0, MPI_COMM_WORLD);
    }
}

int main(int argc, char **argv) {
    int rank, go = 1, value = 0, said = 0;
    MPI_Comm parent, other;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_get_parent(&parent);
    if (parent == MPI_COMM_NULL) {
        MPI_Comm_spawn(argv[0], &argv[1], 1, MPI_INFO_NULL, 0, MPI_COMM_WORLD, &other,
                       MPI_ERRCODES_IGNORE);
    } else {
        other = parent;
    }
    while (go) {
        if (parent != MPI_COMM_NULL) {
            MPI_Recv(&value, 1, MPI_INT, 0, 1, other, MPI_STATUS_IGNORE);
            MPI_Send(&value, 1, MPI_INT, 0, 2, other);
            go = value != 0;
        } else {
            if (rank == 0) {
                go = access(argv[1], F_OK) != 0;
                MPI_Send(&go, 1, MPI_INT, 0, 1, other);
                MPI_Recv(&value, 1, MPI_INT, 0, 2, other, MPI_STATUS_IGNORE);
                if (value != go) {
                    die("echo", 0, 0, 0, 0);
                }
            }
            MPI_Bcast(&go, 1, MPI_INT, 0, MPI_COMM_WORLD);
        }
        if (rank == 0 && parent == MPI_COMM_NULL && !said) {
            printf("CONNECTED\n");
            fflush(stdout);
            said = 1;
        }
    }
    MPI_Comm_disconnect(&other);
    if (rank == 0 && parent == MPI_COMM_NULL) {
        printf("DISCONNECTED\n");
        fflush(stdout);
    }
    if (parent == MPI_COMM_NULL && argc > 2) {
        go_on_alone(argv[2], rank);
    }
    if (rank == 0 && parent == MPI_COMM_NULL) {
        printf("OK\n");
    }
    MPI_Finalize();
    return 0;
}
