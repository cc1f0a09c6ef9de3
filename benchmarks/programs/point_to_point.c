/* Latency, bandwidth and message rate between two ranks.
 *
 * Prints one line per figure, from rank 0: <metric> <bytes> <value>
 * latency in microseconds one way, bandwidth in MB/s, rate in messages per second of 8 bytes;
 * itself: nanoseconds for MPI_Send and MPI_Recv of a message of rank 0 to itself, the best of some
 * series: what the calls cost, and nothing else.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LARGEST = 1 << 20, WINDOW = 64 };

static char buffer[LARGEST];
static int rank;

static double latency(int size, int rounds) {
    double began = 0;

    for (int i = -rounds / 10; i < rounds; i++) {
        if (i == 0) {
            began = MPI_Wtime();
        }
        if (rank == 0) {
            MPI_Send(buffer, size, MPI_BYTE, 1, 1, MPI_COMM_WORLD);
            MPI_Recv(buffer, size, MPI_BYTE, 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else {
            MPI_Recv(buffer, size, MPI_BYTE, 0, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Send(buffer, size, MPI_BYTE, 0, 1, MPI_COMM_WORLD);
        }
    }
    return (MPI_Wtime() - began) / rounds / 2 * 1e6;
}

/* Messages per second, in windows that the receiver acknowledges. */
static double rate(int size, int windows) {
    MPI_Request requests[WINDOW];
    double began = 0;

    for (int i = -windows / 10; i < windows; i++) {
        if (i == 0) {
            began = MPI_Wtime();
        }
        for (int w = 0; w < WINDOW; w++) {
            if (rank == 0) {
                MPI_Isend(buffer, size, MPI_BYTE, 1, 1, MPI_COMM_WORLD, &requests[w]);
            } else {
                MPI_Irecv(buffer, size, MPI_BYTE, 0, 1, MPI_COMM_WORLD, &requests[w]);
            }
        }
        MPI_Waitall(WINDOW, requests, MPI_STATUSES_IGNORE);
        if (rank == 0) {
            MPI_Recv(buffer, 1, MPI_BYTE, 1, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else {
            MPI_Send(buffer, 1, MPI_BYTE, 0, 2, MPI_COMM_WORLD);
        }
    }
    return (double)windows * WINDOW / (MPI_Wtime() - began);
}

static double itself(int size, int rounds) {
    double best = 0;

    for (int series = 0; series < 7; series++) {
        double began = MPI_Wtime(), each;

        for (int i = 0; i < rounds; i++) {
            MPI_Send(buffer, size, MPI_BYTE, rank, 3, MPI_COMM_WORLD);
            MPI_Recv(buffer, size, MPI_BYTE, rank, 3, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        }
        each = (MPI_Wtime() - began) / rounds * 1e9;
        best = series == 0 || each < best ? each : best;
    }
    return best;
}

static void say(const char *metric, int size, double value) {
    if (rank == 0) {
        printf("%s %d %.6g\n", metric, size, value);
    }
}

int main(int argc, char **argv) {
    static const int sizes[] = {1, 64, 1024, 8192, 65536};
    int rounds = argc > 1 ? atoi(argv[1]) : 2000;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    memset(buffer, 1, sizeof buffer);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        say("latency", sizes[i], latency(sizes[i], rounds));
    }
    say("bandwidth", LARGEST, rate(LARGEST, rounds / 100 + 1) * LARGEST / 1e6);
    say("rate", 8, rate(8, rounds / 4 + 1));
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) {
        say("itself", 8, itself(8, 10 * rounds));
    }
    MPI_Finalize();
    return 0;
}
