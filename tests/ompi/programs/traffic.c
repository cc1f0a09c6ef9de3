/* Verified traffic of every kind that ob1 treats differently, until told to stop.
 *
 * usage: traffic STOPFILE [SEED]
 * Runs rounds until STOPFILE exists. All ranks draw the same numbers, so that everyone knows what
 * everyone sends. Prints "OK <rounds>" from rank 0; any wrong byte aborts the job.
 */
#include "verified.h"

#include <unistd.h>

enum { WINDOW = 16, LARGEST = 4 << 20 };

static int rank, ranks;
static uint64_t round_no, random_state;
static unsigned char *out[WINDOW], *in[WINDOW];

static uint32_t draw(uint32_t below) {
    random_state = mix(random_state + 0x9e3779b97f4a7c15ull);
    return (uint32_t)(random_state >> 32) % below;
}

/* Sizes on both sides of every protocol limit; large ones are rarer. */
static size_t draw_size(void) {
    static const size_t limits[] = {64, 4096, 65536, 262144, LARGEST};
    uint32_t lot = draw(100);

    return 1 + draw((uint32_t)limits[lot < 40 ? 0 : lot < 65 ? 1 : lot < 85 ? 2 : lot < 97 ? 3 : 4]);
}

struct plan {
    int to, from, count;
    size_t size[WINDOW];
};

/* Everyone sends to the rank `shift` further on. */
static struct plan draw_plan(int most) {
    int shift = 1 + (int)draw((uint32_t)ranks - 1);
    struct plan plan = {.to = (rank + shift) % ranks, .from = (rank + ranks - shift) % ranks};

    plan.count = 1 + (int)draw((uint32_t)most);
    for (int i = 0; i < plan.count; i++) {
        plan.size[i] = draw_size();
    }
    return plan;
}

static void fill_all(const struct plan *plan) {
    for (int i = 0; i < plan->count; i++) {
        fill(out[i], plan->size[i], seed_of(rank, plan->to, round_no, i));
    }
}

static void check_one(const struct plan *plan, int i, const MPI_Status *status) {
    int got;

    MPI_Get_count(status, MPI_BYTE, &got);
    if ((size_t)got != plan->size[i]) {
        die("length", plan->from, rank, round_no, i);
    }
    check(in[i], plan->size[i], plan->from, rank, round_no, i);
}

static void window_of_nonblocking(void) {
    struct plan plan = draw_plan(WINDOW);
    MPI_Request requests[2 * WINDOW];
    MPI_Status statuses[2 * WINDOW];

    fill_all(&plan);
    for (int i = 0; i < plan.count; i++) {
        MPI_Irecv(in[i], LARGEST, MPI_BYTE, plan.from, 1, MPI_COMM_WORLD, &requests[i]);
    }
    for (int i = 0; i < plan.count; i++) {
        MPI_Isend(out[i], (int)plan.size[i], MPI_BYTE, plan.to, 1, MPI_COMM_WORLD,
                  &requests[plan.count + i]);
    }
    MPI_Waitall(2 * plan.count, requests, statuses);
    for (int i = 0; i < plan.count; i++) {
        check_one(&plan, i, &statuses[i]);
    }
}

/* The messages wait unmatched at the receiver, who takes them in another order than they came. */
static void unexpected_first(void) {
    struct plan plan = draw_plan(WINDOW);
    MPI_Request requests[WINDOW];
    int flag, polls = (int)draw(200);

    fill_all(&plan);
    for (int i = 0; i < plan.count; i++) {
        MPI_Isend(out[i], (int)plan.size[i], MPI_BYTE, plan.to, 100 + i, MPI_COMM_WORLD,
                  &requests[i]);
    }
    while (polls-- > 0) {
        MPI_Iprobe(MPI_ANY_SOURCE, 99, MPI_COMM_WORLD, &flag, MPI_STATUS_IGNORE);
    }
    for (int i = plan.count - 1; i >= 0; i--) {
        MPI_Status status;

        MPI_Recv(in[i], LARGEST, MPI_BYTE, plan.from, 100 + i, MPI_COMM_WORLD, &status);
        check_one(&plan, i, &status);
    }
    MPI_Waitall(plan.count, requests, MPI_STATUSES_IGNORE);
}

/* From any source; each source's messages must stay in order. The tag keeps a fast sender's next
 * round out of this one. */
static void any_source(void) {
    int root = (int)draw((uint32_t)ranks), count = 1 + (int)draw(8);
    int tag = 1000 + (int)(round_no % 10000);
    size_t size[WINDOW];
    int next[64] = {0};

    for (int i = 0; i < count; i++) {
        size[i] = draw_size();
    }
    if (rank != root) {
        for (int i = 0; i < count; i++) {
            fill(out[0], size[i], seed_of(rank, root, round_no, i));
            MPI_Send(out[0], (int)size[i], MPI_BYTE, root, tag, MPI_COMM_WORLD);
        }
        return;
    }
    for (int n = 0; n < count * (ranks - 1); n++) {
        MPI_Status status;
        int got, i;

        MPI_Recv(in[0], LARGEST, MPI_BYTE, MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, &status);
        MPI_Get_count(&status, MPI_BYTE, &got);
        i = next[status.MPI_SOURCE]++;
        if ((size_t)got != size[i]) {
            die("order", status.MPI_SOURCE, rank, round_no, i);
        }
        check(in[0], size[i], status.MPI_SOURCE, rank, round_no, i);
    }
}

static void probed(void) {
    struct plan plan = draw_plan(4);
    MPI_Request requests[WINDOW];

    fill_all(&plan);
    for (int i = 0; i < plan.count; i++) {
        MPI_Isend(out[i], (int)plan.size[i], MPI_BYTE, plan.to, 3, MPI_COMM_WORLD, &requests[i]);
    }
    for (int i = 0; i < plan.count; i++) {
        MPI_Status status;
        MPI_Message message;

        if (draw(2) == 0) {
            MPI_Probe(plan.from, 3, MPI_COMM_WORLD, &status);
            MPI_Recv(in[i], LARGEST, MPI_BYTE, plan.from, 3, MPI_COMM_WORLD, &status);
        } else {
            MPI_Mprobe(plan.from, 3, MPI_COMM_WORLD, &message, &status);
            MPI_Mrecv(in[i], LARGEST, MPI_BYTE, &message, &status);
        }
        check_one(&plan, i, &status);
    }
    MPI_Waitall(plan.count, requests, MPI_STATUSES_IGNORE);
}

static void collectives(void) {
    long mine = (long)(seed_of(rank, 0, round_no, 0) >> 40), sum = 0, expected = 0;
    int size = 1 + (int)draw(20000), root = (int)draw((uint32_t)ranks);

    for (int r = 0; r < ranks; r++) {
        expected += (long)(seed_of(r, 0, round_no, 0) >> 40);
    }
    MPI_Allreduce(&mine, &sum, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
    if (sum != expected) {
        die("sum", rank, rank, round_no, 0);
    }
    if (rank == root) {
        fill(in[0], (size_t)size, seed_of(root, 0, round_no, 1));
    }
    MPI_Bcast(in[0], size, MPI_BYTE, root, MPI_COMM_WORLD);
    check(in[0], (size_t)size, root, 0, round_no, 1);
    for (int r = 0; r < ranks; r++) {
        fill(out[0] + (size_t)r * (size_t)size, (size_t)size, seed_of(rank, r, round_no, 2));
    }
    MPI_Alltoall(out[0], size, MPI_BYTE, in[0], size, MPI_BYTE, MPI_COMM_WORLD);
    for (int r = 0; r < ranks; r++) {
        check(in[0] + (size_t)r * (size_t)size, (size_t)size, r, rank, round_no, 2);
    }
    MPI_Barrier(MPI_COMM_WORLD);
}

static void persistent(void) {
    struct plan plan = draw_plan(4);
    MPI_Request requests[2 * WINDOW];
    MPI_Status statuses[2 * WINDOW];

    for (int i = 0; i < plan.count; i++) {
        MPI_Recv_init(in[i], LARGEST, MPI_BYTE, plan.from, 4, MPI_COMM_WORLD, &requests[i]);
        MPI_Send_init(out[i], (int)plan.size[i], MPI_BYTE, plan.to, 4, MPI_COMM_WORLD,
                      &requests[plan.count + i]);
    }
    for (int again = 0; again < 3; again++) {
        fill_all(&plan);
        MPI_Startall(2 * plan.count, requests);
        MPI_Waitall(2 * plan.count, requests, statuses);
        for (int i = 0; i < plan.count; i++) {
            check_one(&plan, i, &statuses[i]);
        }
        round_no++;
    }
    for (int i = 0; i < 2 * plan.count; i++) {
        MPI_Request_free(&requests[i]);
    }
}

/* Synchronous and buffered sends, and a receive that nothing matches and that is cancelled. */
static void other_modes(void) {
    struct plan plan = draw_plan(4);
    MPI_Request requests[WINDOW], lonely;
    size_t total = 0;
    int cancelled, buffer_size;
    MPI_Status status;
    void *buffer;

    for (int i = 0; i < plan.count; i++) {
        total += plan.size[i] + MPI_BSEND_OVERHEAD;
    }
    buffer = room(total);
    MPI_Buffer_attach(buffer, (int)total);
    MPI_Irecv(in[WINDOW - 1], 8, MPI_BYTE, plan.from, 77, MPI_COMM_WORLD, &lonely);
    fill_all(&plan);
    for (int i = 0; i < plan.count; i++) {
        requests[i] = MPI_REQUEST_NULL;
        if (draw(2) == 0) {
            MPI_Issend(out[i], (int)plan.size[i], MPI_BYTE, plan.to, 5, MPI_COMM_WORLD,
                       &requests[i]);
        } else {
            MPI_Bsend(out[i], (int)plan.size[i], MPI_BYTE, plan.to, 5, MPI_COMM_WORLD);
        }
    }
    for (int i = 0; i < plan.count; i++) {
        MPI_Recv(in[i], LARGEST, MPI_BYTE, plan.from, 5, MPI_COMM_WORLD, &status);
        check_one(&plan, i, &status);
    }
    MPI_Waitall(plan.count, requests, MPI_STATUSES_IGNORE);
    MPI_Cancel(&lonely);
    MPI_Wait(&lonely, &status);
    MPI_Test_cancelled(&status, &cancelled);
    if (!cancelled) {
        die("cancel", plan.from, rank, round_no, 0);
    }
    MPI_Buffer_detach(&buffer, &buffer_size);
    free(buffer);
}

/* Every second byte: not contiguous, so ob1 packs, and cannot use RDMA. */
static void strided(void) {
    int shift = 1 + (int)draw((uint32_t)ranks - 1), count = 1 + (int)draw(400000);
    int to = (rank + shift) % ranks, from = (rank + ranks - shift) % ranks;
    MPI_Datatype every_second;
    MPI_Request request;

    MPI_Type_vector(count, 1, 2, MPI_BYTE, &every_second);
    MPI_Type_commit(&every_second);
    fill(out[1], (size_t)count, seed_of(rank, to, round_no, 0));
    for (int i = 0; i < count; i++) {
        out[0][2 * i] = out[1][i];
    }
    MPI_Isend(out[0], 1, every_second, to, 6, MPI_COMM_WORLD, &request);
    MPI_Recv(in[0], 1, every_second, from, 6, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    for (int i = 0; i < count; i++) {
        in[1][i] = in[0][2 * i];
    }
    check(in[1], (size_t)count, from, rank, round_no, 0);
    MPI_Wait(&request, MPI_STATUS_IGNORE);
    MPI_Type_free(&every_second);
}

int main(int argc, char **argv) {
    static void (*const kinds[])(void) = {window_of_nonblocking, unexpected_first, any_source,
                                          probed,                collectives,      persistent,
                                          other_modes,           strided};
    int go = 1;
    long rounds = 0;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    random_state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    for (int i = 0; i < WINDOW; i++) {
        out[i] = room(LARGEST);
        in[i] = room(LARGEST);
        memset(in[i], 0, LARGEST);
    }
    while (go) {
        kinds[draw(sizeof kinds / sizeof kinds[0])]();
        round_no++;
        rounds++;
        if (rounds % 8 == 0) {
            go = access(argv[1], F_OK) != 0;
            MPI_Bcast(&go, 1, MPI_INT, 0, MPI_COMM_WORLD);
        }
    }
    MPI_Barrier(MPI_COMM_WORLD);
    for (int i = 0; i < WINDOW; i++) {
        free(out[i]);
        free(in[i]);
    }
    if (rank == 0) {
        printf("OK %ld\n", rounds);
    }
    MPI_Finalize();
    return 0;
}
