/* Requests that are pending while the transport is exchanged, one kind in each run.
 *
 * usage: pending KIND GOFILE
 * Rank 1 sends, rank 0 receives. Before GOFILE exists nothing more happens than what each KIND says;
 * both ranks let MPI progress meanwhile. KIND:
 *   posted      receives are posted, wildcards and others mixed; the messages are sent afterwards
 *   unexpected  messages of all sizes wait unmatched; they are received afterwards, in order
 *   probed      likewise, and found by probes of all kinds
 *   cancelled   receives are posted, and cancelled afterwards
 *   freed       requests are freed while they are pending, and a datatype in use
 *   persistent  persistent receives are started; the messages are sent afterwards
 *   strided     likewise, and their type is not contiguous
 *   truncated   messages wait that are too long for their receives
 *   synchronous a synchronous send waits unmatched
 * Prints "WAITING" before it waits, and "OK" at the end.
 */
#include "verified.h"

#include <unistd.h>

enum { COUNT = 24, LARGEST = 1 << 20, STRIDED = 50000 };

static int rank;
static const char *go_file;
static unsigned char *bytes[COUNT];
static MPI_Request requests[COUNT];

static size_t size_of(int i) {
    static const size_t sizes[] = {0, 1, 100, 3000, 9000, 40000, 200000, LARGEST};

    return sizes[i % 8];
}

static void say(const char *what) {
    printf("%s\n", what);
    fflush(stdout);
}

static void need(int holds, const char *what, int i) {
    if (!holds) {
        die(what, 1, 0, 0, i);
    }
}

static void wait_for_go(void) {
    int flag;

    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) {
        say("WAITING");
    }
    while (access(go_file, F_OK) != 0) {
        MPI_Iprobe(MPI_ANY_SOURCE, 9999, MPI_COMM_WORLD, &flag, MPI_STATUS_IGNORE);
    }
}

static void send_all(int tag_step) {
    for (int i = 0; i < COUNT; i++) {
        fill(bytes[i], size_of(i), seed_of(1, 0, 1, i));
        MPI_Isend(bytes[i], (int)size_of(i), MPI_BYTE, 0, 1 + tag_step * i, MPI_COMM_WORLD,
                  &requests[i]);
    }
}

static void check_message(int i, const MPI_Status *status) {
    int got;

    MPI_Get_count(status, MPI_BYTE, &got);
    need((size_t)got == size_of(i), "length", i);
    check(bytes[i], size_of(i), 1, 0, 1, i);
}

/* The i-th message belongs into the i-th buffer, whatever the receive said. */
static void posted(void) {
    MPI_Status statuses[COUNT];

    for (int i = 0; rank == 0 && i < COUNT; i++) {
        MPI_Irecv(bytes[i], LARGEST, MPI_BYTE, i % 3 == 1 ? 1 : MPI_ANY_SOURCE,
                  i % 3 == 2 ? 1 : MPI_ANY_TAG, MPI_COMM_WORLD, &requests[i]);
    }
    wait_for_go();
    if (rank == 1) {
        send_all(0);
    }
    MPI_Waitall(COUNT, requests, statuses);
    for (int i = 0; rank == 0 && i < COUNT; i++) {
        check_message(i, &statuses[i]);
    }
}

static void await_last(int tag) {
    if (rank == 0) {
        MPI_Probe(1, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
}

static void unexpected(void) {
    if (rank == 1) {
        send_all(0);
        MPI_Send(NULL, 0, MPI_BYTE, 0, 500, MPI_COMM_WORLD);
    }
    await_last(500);
    wait_for_go();
    for (int i = 0; rank == 0 && i < COUNT; i++) {
        MPI_Status status;

        MPI_Recv(bytes[i], LARGEST, MPI_BYTE, i % 2 == 0 ? MPI_ANY_SOURCE : 1, 1, MPI_COMM_WORLD,
                 &status);
        check_message(i, &status);
    }
    if (rank == 0) {
        MPI_Recv(NULL, 0, MPI_BYTE, 1, 500, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    } else {
        MPI_Waitall(COUNT, requests, MPI_STATUSES_IGNORE);
    }
}

static void probed(void) {
    MPI_Message early[COUNT / 4];

    if (rank == 1) {
        send_all(1);
        MPI_Send(NULL, 0, MPI_BYTE, 0, 500, MPI_COMM_WORLD);
    }
    await_last(500);
    for (int i = 0; rank == 0 && i < COUNT / 4; i++) {
        MPI_Mprobe(1, 1 + i, MPI_COMM_WORLD, &early[i], MPI_STATUS_IGNORE);
    }
    wait_for_go();
    for (int i = 0; rank == 0 && i < COUNT; i++) {
        MPI_Message message;
        MPI_Status status;
        int flag, size;

        if (i < COUNT / 4) {
            MPI_Mrecv(bytes[i], LARGEST, MPI_BYTE, &early[i], &status);
        } else if (i % 2 == 0) {
            MPI_Mprobe(MPI_ANY_SOURCE, 1 + i, MPI_COMM_WORLD, &message, &status);
            MPI_Mrecv(bytes[i], LARGEST, MPI_BYTE, &message, &status);
        } else {
            MPI_Iprobe(1, 1 + i, MPI_COMM_WORLD, &flag, &status);
            MPI_Get_count(&status, MPI_BYTE, &size);
            need(flag && (size_t)size == size_of(i), "probe", i);
            MPI_Recv(bytes[i], LARGEST, MPI_BYTE, 1, 1 + i, MPI_COMM_WORLD, &status);
        }
        check_message(i, &status);
    }
    if (rank == 0) {
        MPI_Recv(NULL, 0, MPI_BYTE, 1, 500, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    } else {
        MPI_Waitall(COUNT, requests, MPI_STATUSES_IGNORE);
    }
}

/* Every other one; the rest must still be matched, in order. */
static void cancelled(void) {
    MPI_Status statuses[COUNT];

    for (int i = 0; rank == 0 && i < COUNT; i++) {
        MPI_Irecv(bytes[i], LARGEST, MPI_BYTE, MPI_ANY_SOURCE, 1, MPI_COMM_WORLD, &requests[i]);
    }
    wait_for_go();
    for (int i = 0; rank == 0 && i < COUNT; i += 2) {
        int yes;

        MPI_Cancel(&requests[i]);
        MPI_Wait(&requests[i], &statuses[i]);
        MPI_Test_cancelled(&statuses[i], &yes);
        need(yes, "cancel", i);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    for (int i = 1; rank == 1 && i < COUNT; i += 2) {
        fill(bytes[i], size_of(i), seed_of(1, 0, 1, i));
        MPI_Send(bytes[i], (int)size_of(i), MPI_BYTE, 0, 1, MPI_COMM_WORLD);
    }
    for (int i = 1; rank == 0 && i < COUNT; i += 2) {
        MPI_Wait(&requests[i], &statuses[i]);
        check_message(i, &statuses[i]);
    }
}

/* The last message tells that the others, before it, are there too. */
static void freed(void) {
    unsigned char *spread = room(2 * STRIDED);
    MPI_Datatype every_second;
    MPI_Request request;

    MPI_Type_vector(STRIDED, 1, 2, MPI_BYTE, &every_second);
    MPI_Type_commit(&every_second);
    if (rank == 0) {
        MPI_Irecv(spread, 1, every_second, 1, 1, MPI_COMM_WORLD, &requests[0]);
        MPI_Irecv(bytes[1], LARGEST, MPI_BYTE, 1, 2, MPI_COMM_WORLD, &request);
        MPI_Request_free(&request);
        MPI_Irecv(bytes[2], LARGEST, MPI_BYTE, 1, 3, MPI_COMM_WORLD, &requests[1]);
    }
    MPI_Type_free(&every_second);
    wait_for_go();
    if (rank == 1) {
        fill(bytes[0], STRIDED, seed_of(1, 0, 1, 0));
        fill(bytes[1], LARGEST, seed_of(1, 0, 1, 1));
        MPI_Isend(bytes[0], STRIDED, MPI_BYTE, 0, 1, MPI_COMM_WORLD, &request);
        MPI_Request_free(&request);
        MPI_Send(bytes[1], LARGEST, MPI_BYTE, 0, 2, MPI_COMM_WORLD);
        MPI_Send(bytes[2], 0, MPI_BYTE, 0, 3, MPI_COMM_WORLD);
    } else {
        MPI_Waitall(2, requests, MPI_STATUSES_IGNORE);
        for (int i = 0; i < STRIDED; i++) {
            bytes[0][i] = spread[2 * i];
        }
        check(bytes[0], STRIDED, 1, 0, 1, 0);
        check(bytes[1], LARGEST, 1, 0, 1, 1);
    }
    free(spread);
}

static void persistent(void) {
    MPI_Status statuses[COUNT];

    for (int i = 0; i < COUNT; i++) {
        if (rank == 0) {
            MPI_Recv_init(bytes[i], LARGEST, MPI_BYTE, MPI_ANY_SOURCE, 1, MPI_COMM_WORLD,
                          &requests[i]);
        } else {
            MPI_Send_init(bytes[i], (int)size_of(i), MPI_BYTE, 0, 1, MPI_COMM_WORLD, &requests[i]);
            fill(bytes[i], size_of(i), seed_of(1, 0, 1, i));
        }
    }
    if (rank == 0) {
        MPI_Startall(COUNT, requests);
    }
    wait_for_go();
    for (int again = 0; again < 2; again++) {
        if (rank == 1 || again > 0) {
            MPI_Startall(COUNT, requests);
        }
        MPI_Waitall(COUNT, requests, statuses);
        for (int i = 0; rank == 0 && i < COUNT; i++) {
            check_message(i, &statuses[i]);
        }
    }
    for (int i = 0; i < COUNT; i++) {
        MPI_Request_free(&requests[i]);
    }
}

static void strided(void) {
    unsigned char *spread[COUNT];
    MPI_Datatype every_second;

    MPI_Type_vector(STRIDED, 1, 2, MPI_BYTE, &every_second);
    MPI_Type_commit(&every_second);
    for (int i = 0; i < COUNT; i++) {
        spread[i] = room(2 * STRIDED);
        if (rank == 0) {
            MPI_Irecv(spread[i], 1, every_second, 1, 1, MPI_COMM_WORLD, &requests[i]);
        }
    }
    wait_for_go();
    for (int i = 0; i < COUNT; i++) {
        if (rank == 1) {
            fill(bytes[i], STRIDED, seed_of(1, 0, 1, i));
            MPI_Send(bytes[i], STRIDED, MPI_BYTE, 0, 1, MPI_COMM_WORLD);
            continue;
        }
        MPI_Wait(&requests[i], MPI_STATUS_IGNORE);
        for (int b = 0; b < STRIDED; b++) {
            bytes[i][b] = spread[i][2 * b];
        }
        check(bytes[i], STRIDED, 1, 0, 1, i);
    }
    for (int i = 0; i < COUNT; i++) {
        free(spread[i]);
    }
    MPI_Type_free(&every_second);
}

/* Posted before, received afterwards, and strided: each must fail with MPI_ERR_TRUNCATE, and what
 * comes next must not. */
static void truncated(void) {
    MPI_Datatype every_second;
    MPI_Status status;

    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Type_vector(50, 1, 2, MPI_BYTE, &every_second);
    MPI_Type_commit(&every_second);
    if (rank == 1) {
        send_all(1);
        MPI_Send(NULL, 0, MPI_BYTE, 0, 500, MPI_COMM_WORLD);
    }
    await_last(500);
    wait_for_go();
    for (int i = 0; rank == 0 && i < COUNT; i++) {
        int size = (int)size_of(i), error_class, error;

        if (i % 4 == 3) {
            MPI_Request request;

            MPI_Irecv(bytes[i], 1, every_second, 1, 1 + i, MPI_COMM_WORLD, &request);
            error = MPI_Wait(&request, &status);
            size = size > 50 ? 0 : size;
        } else {
            int capacity = size == 0 ? 0 : size - 1;

            error = MPI_Recv(bytes[i], capacity, MPI_BYTE, 1, 1 + i, MPI_COMM_WORLD, &status);
            size = capacity < size ? 0 : size;
        }
        MPI_Error_class(error, &error_class);
        need(error_class == (size_of(i) == (size_t)size ? MPI_SUCCESS : MPI_ERR_TRUNCATE),
             "error class", i);
    }
    if (rank == 0) {
        MPI_Recv(NULL, 0, MPI_BYTE, 1, 500, MPI_COMM_WORLD, &status);
    } else {
        MPI_Waitall(COUNT, requests, MPI_STATUSES_IGNORE);
    }
    MPI_Type_free(&every_second);
}

/* What the documentation says of it: it is complete once its message is kept. */
static void synchronous(void) {
    int done = 0;

    if (rank == 1) {
        fill(bytes[0], LARGEST, seed_of(1, 0, 1, 0));
        MPI_Issend(bytes[0], LARGEST, MPI_BYTE, 0, 1, MPI_COMM_WORLD, &requests[0]);
    }
    await_last(1);
    wait_for_go();
    if (rank == 1) {
        MPI_Test(&requests[0], &done, MPI_STATUS_IGNORE);
        printf("COMPLETE %d\n", done);
        fflush(stdout);
        MPI_Wait(&requests[0], MPI_STATUS_IGNORE);
    } else {
        MPI_Recv(bytes[0], LARGEST, MPI_BYTE, 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        check(bytes[0], LARGEST, 1, 0, 1, 0);
    }
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(void);
    } kinds[] = {{"posted", posted},         {"unexpected", unexpected}, {"probed", probed},
                 {"cancelled", cancelled},   {"freed", freed},           {"persistent", persistent},
                 {"strided", strided},       {"truncated", truncated},   {"synchronous", synchronous}};

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    go_file = argc > 2 ? argv[2] : "";
    for (int i = 0; i < COUNT; i++) {
        bytes[i] = room(LARGEST);
        requests[i] = MPI_REQUEST_NULL;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (argc > 2 && strcmp(argv[1], kinds[i].name) == 0) {
            kinds[i].run();
        }
    }
    MPI_Barrier(MPI_COMM_WORLD);
    for (int i = 0; i < COUNT; i++) {
        free(bytes[i]);
    }
    if (rank == 0) {
        say("OK");
    }
    MPI_Finalize();
    return 0;
}
