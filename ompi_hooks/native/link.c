#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "stall.h"

enum {
    COMMANDS_MAX = 64, /* queued: far more than a coordinator has under way at once */
    REPLIES_MAX = 128,
    REDIAL_FIRST_MS = 50,
    REDIAL_LAST_MS = 1000,
    POKE_AFTER_MS = 20
};

struct reply {
    struct reply *next;
    uint32_t connection;
    struct kw_message message;
};

/* Guards every queue and the fields below it; held for a few instructions only, never across a
 * system call that can block. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct kw_incoming *commands[COMMANDS_MAX]; /* a ring */
static unsigned commands_head, commands_len;
static bool command_taken; /* and not finished */
static struct reply *replies, **replies_tail = &replies;
static unsigned replies_len;
static struct kw_hello hello;
static uint32_t connection; /* counts connections; that of the current one while connected */
static bool stopping;       /* set once, by kw_link_stop */

/* Of the thread alone, after kw_link_start. */
static char socket_path[sizeof(((struct sockaddr_un *)0)->sun_path)];
static int wake_fd = -1;
static int socket_fd = -1;
static int redial_ms;
static bool (*is_ready)(void); /* NULL once it has said so */
static void (*on_command)(void);
static void (*on_poke)(void);
static uint64_t poke_at; /* 0: nobody asked for it */

static pthread_t thread;
static bool started; /* of the thread that starts and stops */

static void wake(void) {
    uint64_t one = 1;

    /* EAGAIN means that the counter is full, so a wake-up is pending anyway. */
    (void)!write(wake_fd, &one, sizeof one);
}

static void queues_clear(void) {
    pthread_mutex_lock(&lock);
    while (commands_len > 0) {
        free(commands[commands_head]);
        commands_head = (commands_head + 1) % COMMANDS_MAX;
        commands_len--;
    }
    while (replies != NULL) {
        struct reply *next = replies->next;

        kw_message_release(&replies->message);
        free(replies);
        replies = next;
    }
    replies_tail = &replies;
    replies_len = 0;
    pthread_mutex_unlock(&lock);
}

static void disconnect(void) {
    close(socket_fd);
    socket_fd = -1;
    poke_at = 0;
    pthread_mutex_lock(&lock);
    connection++;
    pthread_mutex_unlock(&lock);
    queues_clear();
}

static bool peer_trusted(int fd) {
    struct ucred peer;
    socklen_t size = sizeof peer;

    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
           (peer.uid == 0 || peer.uid == geteuid());
}

/* Dial once. On success socket_fd is open and the hello is on its way. */
static void dial(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct kw_hello greeting;
    int fd;

    if (is_ready != NULL && !is_ready()) {
        redial_ms = REDIAL_FIRST_MS;
        return;
    }
    is_ready = NULL;
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return;
    }
    memcpy(address.sun_path, socket_path, sizeof socket_path);
    pthread_mutex_lock(&lock);
    greeting = hello;
    pthread_mutex_unlock(&lock);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0 || !peer_trusted(fd) ||
        send(fd, &greeting, sizeof greeting, MSG_NOSIGNAL) != (ssize_t)sizeof greeting) {
        close(fd);
        return;
    }
    socket_fd = fd;
    redial_ms = REDIAL_FIRST_MS;
}

static void refuse(const struct kw_header *header, const char *why) {
    struct kw_reply reply = {.outcome = KW_BAD_MESSAGE};

    kw_header_set(&reply.header, KW_REPLY, sizeof reply, header->sequence);
    strncpy(reply.text, why, sizeof reply.text - 1);
    (void)send(socket_fd, &reply, sizeof reply, MSG_NOSIGNAL);
}

static void command_queue(const void *packet, size_t size) {
    const struct kw_command *command = packet;
    struct kw_incoming *incoming =
        calloc(1, sizeof *incoming - sizeof incoming->command + size);
    bool queued = false;

    if (incoming != NULL) {
        memcpy(&incoming->command, packet, size);
        incoming->received_ns = kw_clock();
        pthread_mutex_lock(&lock);
        incoming->connection = connection;
        if (commands_len < COMMANDS_MAX) {
            commands[(commands_head + commands_len) % COMMANDS_MAX] = incoming;
            commands_len++;
            queued = true;
        }
        pthread_mutex_unlock(&lock);
    }
    if (!queued) {
        free(incoming);
        refuse(&command->header, "too many commands under way");
        return;
    }
    if ((command->flags & KW_POKE) != 0) {
        poke_at = kw_clock() + POKE_AFTER_MS * 1000000ull;
    }
    on_command();
}

/* Read everything that is there. Returns false if the connection is over. */
static bool receive(void) {
    static union {
        struct kw_header header;
        unsigned char bytes[KW_MAX_MESSAGE];
    } packet;

    for (;;) {
        ssize_t size =
            recv(socket_fd, packet.bytes, sizeof packet.bytes, MSG_DONTWAIT | MSG_TRUNC);
        const char *wrong;

        if (size < 0) {
            return errno == EAGAIN || errno == EINTR;
        }
        if (size == 0) {
            return false;
        }
        if (kw_welcome_check(packet.bytes, (size_t)size) == NULL) {
            if (((const struct kw_welcome *)(const void *)packet.bytes)->accepted == 0) {
                redial_ms = REDIAL_LAST_MS;
                return false;
            }
            continue;
        }
        wrong = kw_command_check(packet.bytes, (size_t)size);
        if (wrong == NULL) {
            command_queue(packet.bytes, (size_t)size);
        } else {
            if ((size_t)size < sizeof packet.header) {
                packet.header.sequence = 0;
            }
            refuse(&packet.header, wrong);
        }
    }
}

static struct reply *reply_pop(void) {
    struct reply *reply;

    pthread_mutex_lock(&lock);
    reply = replies;
    if (reply != NULL) {
        replies = reply->next;
        replies_len--;
        if (replies == NULL) {
            replies_tail = &replies;
        }
    }
    pthread_mutex_unlock(&lock);
    return reply;
}

static void reply_unpop(struct reply *reply) {
    pthread_mutex_lock(&lock);
    reply->next = replies;
    replies = reply;
    replies_len++;
    if (reply->next == NULL) {
        replies_tail = &reply->next;
    }
    pthread_mutex_unlock(&lock);
}

/* Send what is queued, until the socket is full. Returns false if the connection is over;
 * *unsent says whether something is left. */
static bool transmit(bool *unsent) {
    struct reply *reply;

    *unsent = false;
    while ((reply = reply_pop()) != NULL) {
        bool current = reply->connection == connection;

        if (current && send(socket_fd, reply->message.bytes, reply->message.size,
                            MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
            bool full = errno == EAGAIN || errno == EINTR || errno == ENOBUFS;

            reply_unpop(reply);
            *unsent = full;
            return full;
        }
        kw_message_release(&reply->message);
        free(reply);
    }
    return true;
}

static bool is_stopping(void) {
    bool result;

    pthread_mutex_lock(&lock);
    result = stopping;
    pthread_mutex_unlock(&lock);
    return result;
}

/* A command that asked for it still waits: the rank has not come to its safe point by itself. */
static void poke_if_due(void) {
    bool waiting;

    if (poke_at == 0 || kw_clock() < poke_at) {
        return;
    }
    pthread_mutex_lock(&lock);
    waiting = commands_len > 0 || command_taken;
    pthread_mutex_unlock(&lock);
    poke_at = waiting ? kw_clock() + POKE_AFTER_MS * 1000000ull : 0;
    if (waiting) {
        on_poke();
    }
}

static void *run(void *unused) {
    bool unsent = false;

    (void)unused;
    while (!is_stopping()) {
        struct pollfd fds[2] = {{.fd = wake_fd, .events = POLLIN}, {.fd = socket_fd}};
        int timeout = poke_at != 0 ? POKE_AFTER_MS : -1;
        uint64_t count;

        if (socket_fd < 0) {
            timeout = redial_ms;
            redial_ms = redial_ms < REDIAL_LAST_MS / 2 ? 2 * redial_ms : REDIAL_LAST_MS;
            dial();
            fds[1].fd = socket_fd;
            if (socket_fd >= 0) {
                timeout = -1;
            }
        }
        fds[1].events = (short)(POLLIN | (unsent ? POLLOUT : 0));
        if (poll(fds, 2, timeout) < 0 && errno != EINTR) {
            break;
        }
        (void)!read(wake_fd, &count, sizeof count);
        if (socket_fd >= 0 && (!receive() || !transmit(&unsent))) {
            disconnect();
            unsent = false;
        }
        poke_if_due();
    }
    if (socket_fd >= 0) {
        struct kw_goodbye goodbye;

        kw_header_set(&goodbye.header, KW_GOODBYE, sizeof goodbye, 0);
        (void)transmit(&unsent);
        (void)send(socket_fd, &goodbye, sizeof goodbye, MSG_NOSIGNAL | MSG_DONTWAIT);
        disconnect();
    }
    return NULL;
}

void kw_link_wait_for(bool (*ready)(void)) {
    is_ready = ready;
}

int kw_link_start(const char *path, const struct kw_hello *greeting, void (*attention)(void),
                  void (*poke)(void)) {
    sigset_t all, before;
    int rc;

    if (strlen(path) >= sizeof socket_path) {
        return ENAMETOOLONG;
    }
    strcpy(socket_path, path);
    hello = *greeting;
    kw_header_set(&hello.header, KW_HELLO, sizeof hello, 0);
    on_command = attention;
    on_poke = poke;
    redial_ms = REDIAL_FIRST_MS;
    wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake_fd < 0) {
        return errno;
    }
    /* The program's signals are the program's threads' business. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&thread, NULL, run, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        close(wake_fd);
        wake_fd = -1;
        return rc;
    }
    started = true;
    return 0;
}

void kw_link_set_state(uint32_t state, uint32_t epoch) {
    pthread_mutex_lock(&lock);
    hello.state = state;
    hello.epoch = epoch;
    pthread_mutex_unlock(&lock);
}

struct kw_incoming *kw_link_take(void) {
    struct kw_incoming *incoming = NULL;

    pthread_mutex_lock(&lock);
    if (commands_len > 0) {
        incoming = commands[commands_head];
        commands_head = (commands_head + 1) % COMMANDS_MAX;
        commands_len--;
        command_taken = true;
    }
    pthread_mutex_unlock(&lock);
    return incoming;
}

void kw_link_finish(struct kw_incoming *incoming) {
    free(incoming);
    pthread_mutex_lock(&lock);
    command_taken = false;
    pthread_mutex_unlock(&lock);
}

void kw_link_reply(uint32_t to, struct kw_message *message) {
    struct reply *reply = malloc(sizeof *reply);
    bool queued = false;

    if (reply != NULL) {
        *reply = (struct reply){.connection = to, .message = *message};
        ((struct kw_header *)(void *)message->bytes)->size = (uint32_t)message->size;
        pthread_mutex_lock(&lock);
        if (to == connection && replies_len < REPLIES_MAX) {
            *replies_tail = reply;
            replies_tail = &reply->next;
            replies_len++;
            queued = true;
        }
        pthread_mutex_unlock(&lock);
    }
    if (!queued) {
        kw_message_release(message);
        free(reply);
        return;
    }
    *message = (struct kw_message){0};
    wake();
}

void kw_link_stop(void) {
    if (!started) {
        return;
    }
    started = false;
    pthread_mutex_lock(&lock);
    stopping = true;
    pthread_mutex_unlock(&lock);
    wake();
    pthread_join(thread, NULL);
    queues_clear();
    close(wake_fd);
    wake_fd = -1;
}
