/* Messages that are under way, and not yet received, while the BTL is exchanged.
 *
 * usage: held KIND GOFILE
 * Rank 1 sends to rank 0, who receives nothing before GOFILE exists and nothing else communicates.
 * KIND: contiguous | strided | mprobe | ssend | order | many
 * Prints "WAITING" when the message waits at rank 0, and "OK" at the end.
 */
#include "verified.h"

#include <unistd.h>

enum { SIZE = 1 << 20, MANY = 200 };

static int rank;
static const char *go_file;

/* Let MPI progress until told to go on, without receiving. */
static void wait_for_go(MPI_Request *request) {
    int flag;

    while (access(go_file, F_OK) != 0) {
        if (request != NULL) {
            MPI_Test(request, &flag, MPI_STATUS_IGNORE);
        }
        MPI_Iprobe(MPI_ANY_SOURCE, 9999, MPI_COMM_WORLD, &flag, MPI_STATUS_IGNORE);
    }
}

static void say(const char *what) {
    printf("%s\n", what);
    fflush(stdout);
}

/* The message is here, unmatched. */
static void await_arrival(int tag) {
    MPI_Probe(1, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    say("WAITING");
}

static void contiguous(int synchronous) {
    unsigned char *bytes = room(SIZE);
    MPI_Request request;

    if (rank == 1) {
        fill(bytes, SIZE, seed_of(1, 0, 1, 0));
        (synchronous ? MPI_Issend : MPI_Isend)(bytes, SIZE, MPI_BYTE, 0, 1, MPI_COMM_WORLD,
                                               &request);
        MPI_Wait(&request, MPI_STATUS_IGNORE);
    } else {
        await_arrival(1);
        wait_for_go(NULL);
        MPI_Recv(bytes, SIZE, MPI_BYTE, 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        check(bytes, SIZE, 1, 0, 1, 0);
    }
    free(bytes);
}

static void strided(void) {
    unsigned char *bytes = room(SIZE), *spread = room(2 * SIZE);
    MPI_Datatype every_second;

    MPI_Type_vector(SIZE, 1, 2, MPI_BYTE, &every_second);
    MPI_Type_commit(&every_second);
    if (rank == 1) {
        fill(bytes, SIZE, seed_of(1, 0, 1, 0));
        MPI_Send(bytes, SIZE, MPI_BYTE, 0, 1, MPI_COMM_WORLD);
    } else {
        await_arrival(1);
        wait_for_go(NULL);
        MPI_Recv(spread, 1, every_second, 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        for (int i = 0; i < SIZE; i++) {
            bytes[i] = spread[2 * i];
        }
        check(bytes, SIZE, 1, 0, 1, 0);
    }
    MPI_Type_free(&every_second);
    free(bytes);
    free(spread);
}

/* Taken out of the matching queue, and held in a handle. */
static void mprobed(void) {
    unsigned char *bytes = room(SIZE);
    MPI_Message message;

    if (rank == 1) {
        fill(bytes, SIZE, seed_of(1, 0, 1, 0));
        MPI_Send(bytes, SIZE, MPI_BYTE, 0, 1, MPI_COMM_WORLD);
    } else {
        MPI_Mprobe(1, 1, MPI_COMM_WORLD, &message, MPI_STATUS_IGNORE);
        say("WAITING");
        wait_for_go(NULL);
        MPI_Mrecv(bytes, SIZE, MPI_BYTE, &message, MPI_STATUS_IGNORE);
        check(bytes, SIZE, 1, 0, 1, 0);
    }
    free(bytes);
}

/* Large before small: what follows overtakes on the wire, and must not in MPI's order. */
static void order(void) {
    unsigned char *bytes = room(SIZE), *small = room(64);
    MPI_Request requests[2];

    if (rank == 1) {
        fill(bytes, SIZE, seed_of(1, 0, 1, 0));
        fill(small, 64, seed_of(1, 0, 1, 1));
        MPI_Isend(bytes, SIZE, MPI_BYTE, 0, 1, MPI_COMM_WORLD, &requests[0]);
        wait_for_go(&requests[0]);
        MPI_Isend(small, 64, MPI_BYTE, 0, 1, MPI_COMM_WORLD, &requests[1]);
        MPI_Waitall(2, requests, MPI_STATUSES_IGNORE);
    } else {
        await_arrival(1);
        wait_for_go(NULL);
        MPI_Recv(bytes, SIZE, MPI_BYTE, 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        MPI_Recv(small, 64, MPI_BYTE, 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        check(bytes, SIZE, 1, 0, 1, 0);
        check(small, 64, 1, 0, 1, 1);
    }
    free(bytes);
    free(small);
}

/* More unmatched messages than one block of ob1's free lists holds. */
static void many(void) {
    static unsigned char *bytes[MANY];
    MPI_Request requests[MANY];

    for (int i = 0; i < MANY; i++) {
        bytes[i] = room(SIZE / 8);
        if (rank == 1) {
            fill(bytes[i], SIZE / 8, seed_of(1, 0, 1, i));
            MPI_Isend(bytes[i], SIZE / 8, MPI_BYTE, 0, 1 + i, MPI_COMM_WORLD, &requests[i]);
        }
    }
    if (rank == 1) {
        MPI_Waitall(MANY, requests, MPI_STATUSES_IGNORE);
    } else {
        await_arrival(MANY);
        wait_for_go(NULL);
        for (int i = MANY - 1; i >= 0; i--) {
            MPI_Recv(bytes[i], SIZE / 8, MPI_BYTE, 1, 1 + i, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            check(bytes[i], SIZE / 8, 1, 0, 1, i);
        }
    }
    for (int i = 0; i < MANY; i++) {
        free(bytes[i]);
    }
}

int main(int argc, char **argv) {
    const char *kind = argc > 2 ? argv[1] : "";

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    go_file = argv[2];
    if (strcmp(kind, "contiguous") == 0) {
        contiguous(0);
    } else if (strcmp(kind, "ssend") == 0) {
        contiguous(1);
    } else if (strcmp(kind, "strided") == 0) {
        strided();
    } else if (strcmp(kind, "mprobe") == 0) {
        mprobed();
    } else if (strcmp(kind, "order") == 0) {
        order();
    } else if (strcmp(kind, "many") == 0) {
        many();
    } else {
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) {
        say("OK");
    }
    MPI_Finalize();
    return 0;
}
