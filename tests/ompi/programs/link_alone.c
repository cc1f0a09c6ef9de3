/* The rank's link without MPI, against an agent in the same process that hangs up again and again.
 * To be built with sanitizers.
 *
 * usage: link_alone SOCKET CONNECTIONS
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "link.h"

enum { COMMANDS = 40, DEADLINE_MS = 10000 };

static atomic_int attention, pokes;

static void on_command(void) {
    atomic_fetch_add(&attention, 1);
}

static void on_poke(void) {
    atomic_fetch_add(&pokes, 1);
}

static void need(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "WRONG %s (errno %d)\n", what, errno);
        exit(3);
    }
}

static void await_readable(int fd, const char *what) {
    struct pollfd one = {.fd = fd, .events = POLLIN};

    need(poll(&one, 1, DEADLINE_MS) == 1, what);
}

/* What the rank's thread does at a safe point. */
static void rank_serve(void) {
    struct kw_incoming *incoming;

    while ((incoming = kw_queues_take()) != NULL) {
        struct kw_message message;
        struct kw_reply *reply;

        need(kw_message_begin(&message, sizeof *reply), "memory");
        reply = (struct kw_reply *)(void *)message.bytes;
        kw_header_set(&reply->header, KW_REPLY, message.size, incoming->command.header.sequence);
        kw_link_set_state(KW_ATTACHED, incoming->command.epoch);
        kw_link_reply(incoming->connection, &message);
        kw_queues_finish(incoming);
    }
}

static void send_command(int fd, uint32_t sequence) {
    struct {
        struct kw_command command;
        struct kw_blob blob;
        char bytes[8];
    } packet = {.command = {.code = KW_STATUS, .epoch = sequence, .blobs = 1, .flags = KW_POKE},
                .blob = {.size = 5, .key = "key"}};

    kw_header_set(&packet.command.header, KW_COMMAND, sizeof packet, sequence);
    need(send(fd, &packet, sizeof packet, 0) == (ssize_t)sizeof packet, "send");
}

static void converse(int fd, int hang_up) {
    struct kw_hello hello;
    struct kw_reply reply;
    uint32_t expected = 1;

    await_readable(fd, "hello");
    need(recv(fd, &hello, sizeof hello, 0) == (ssize_t)sizeof hello, "hello's size");
    need(hello.header.type == KW_HELLO && strcmp(hello.kind, "test") == 0, "hello");
    for (uint32_t i = 1; i <= COMMANDS; i++) {
        send_command(fd, i);
    }
    need(send(fd, "nonsense", 8, 0) == 8, "send");
    if (hang_up) {
        return;
    }
    while (expected <= COMMANDS + 1) {
        struct pollfd one = {.fd = fd, .events = POLLIN};

        rank_serve();
        if (poll(&one, 1, 1) == 1) {
            need(recv(fd, &reply, sizeof reply, 0) == (ssize_t)sizeof reply, "reply's size");
            expected++;
        }
    }
}

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct kw_hello hello = {.kind = "test"};
    int connections = argc > 2 ? atoi(argv[2]) : 10;
    int listener = socket(AF_UNIX, SOCK_SEQPACKET, 0), fd = -1;

    strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    need(bind(listener, (struct sockaddr *)&address, sizeof address) == 0, "bind");
    need(listen(listener, 8) == 0, "listen");
    need(kw_link_start(argv[1], &hello, on_command, on_poke) == 0, "start");
    for (int i = 0; i < connections; i++) {
        await_readable(listener, "dial");
        fd = accept(listener, NULL, NULL);
        need(fd >= 0, "accept");
        converse(fd, i % 3 == 1);
        if (i + 1 < connections) {
            close(fd);
        }
    }
    kw_link_stop();
    kw_link_stop();
    need(atomic_load(&attention) > 0, "attention");
    printf("OK %d connections\n", connections);
    return 0;
}
