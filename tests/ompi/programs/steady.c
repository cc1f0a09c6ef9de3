/* Small collectives until told to stop; nothing is allocated on the way.
 *
 * usage: steady STOPFILE [MODE]
 * MODE: multiple  ask for MPI_THREAD_MULTIPLE
 *       window    hold an RMA window open
 *       compute S let rank 0 compute for S seconds outside MPI, once, when it says "COMPUTING"
 *       count F   keep each rank's number of rounds in the file F, eight bytes per rank
 *       sleep S   let rank 0 sleep for S seconds in one system call; it must not be interrupted
 * Prints "OK <rounds>" at the end.
 */
#include "verified.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static volatile double sink;

static void compute(double seconds) {
    struct timespec began, now;

    clock_gettime(CLOCK_MONOTONIC, &began);
    do {
        for (int i = 0; i < 1000000; i++) {
            sink += (double)i * 1e-9;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((double)(now.tv_sec - began.tv_sec) < seconds);
}

static void sleep_undisturbed(double seconds) {
    struct timespec time = {(time_t)seconds, 0};

    if (nanosleep(&time, NULL) != 0) {
        fprintf(stderr, "WRONG interrupted: errno %d\n", errno);
        MPI_Abort(MPI_COMM_WORLD, 3);
    }
}

/* Where this rank's number of rounds is to be seen from outside. */
static volatile uint64_t *counter_map(const char *path, int rank, int ranks) {
    size_t size = (size_t)ranks * sizeof(uint64_t);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    uint64_t *counters;

    if (fd < 0 || ftruncate(fd, (off_t)size) != 0) {
        die("counter file", rank, rank, 0, 0);
    }
    counters = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (counters == MAP_FAILED) {
        die("counter file", rank, rank, 0, 0);
    }
    close(fd);
    return &counters[rank];
}

int main(int argc, char **argv) {
    const char *mode = argc > 2 ? argv[2] : "";
    int counts = strcmp(mode, "count") == 0;
    double seconds = argc > 3 && !counts ? atof(argv[3]) : 0;
    volatile uint64_t *counter = NULL;
    int rank, ranks, provided, go = 1;
    MPI_Win window = MPI_WIN_NULL;
    void *memory;
    long rounds = 0;

    MPI_Init_thread(&argc, &argv,
                    strcmp(mode, "multiple") == 0 ? MPI_THREAD_MULTIPLE : MPI_THREAD_SINGLE,
                    &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (strcmp(mode, "window") == 0) {
        MPI_Win_allocate(4096, 1, MPI_INFO_NULL, MPI_COMM_WORLD, &memory, &window);
        MPI_Barrier(MPI_COMM_WORLD);
        printf("BEGIN\n");
        fflush(stdout);
    }
    if (counts) {
        counter = counter_map(argv[3], rank, ranks);
    }
    while (go) {
        int mine = rank, sum;

        MPI_Allreduce(&mine, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
        if (sum != ranks * (ranks - 1) / 2) {
            die("sum", rank, rank, (uint64_t)rounds, 0);
        }
        if (rank == 0 && seconds > 0 && rounds == 100) {
            printf("COMPUTING\n");
            fflush(stdout);
            (strcmp(mode, "sleep") == 0 ? sleep_undisturbed : compute)(seconds);
        }
        rounds++;
        if (counter != NULL) {
            *counter = (uint64_t)rounds;
        }
        go = access(argv[1], F_OK) != 0;
        MPI_Bcast(&go, 1, MPI_INT, 0, MPI_COMM_WORLD);
    }
    if (window != MPI_WIN_NULL) {
        MPI_Win_free(&window);
    }
    if (rank == 0) {
        printf("OK %ld\n", rounds);
    }
    MPI_Finalize();
    return 0;
}
