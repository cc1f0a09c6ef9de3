#include "link.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "stall.h"

enum { REDIAL_FIRST_MS = 50, REDIAL_LAST_MS = 1000, POKE_AFTER_MS = 20 };

/* Guards the two below it; held for a few instructions only, never across a system call that can
 * block. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct kw_hello hello;
static bool stopping; /* set once, by kw_link_stop */

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

static void disconnect(void) {
    close(socket_fd);
    socket_fd = -1;
    poke_at = 0;
    kw_queues_reset();
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

static void command_queue(const struct kw_command *command, size_t size) {
    if (!kw_queues_put(command, size)) {
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
            command_queue((const void *)packet.bytes, (size_t)size);
        } else {
            if ((size_t)size < sizeof packet.header) {
                packet.header.sequence = 0;
            }
            refuse(&packet.header, wrong);
        }
    }
}

/* Send what is queued, until the socket is full. Returns false if the connection is over;
 * *unsent says whether something is left. */
static bool transmit(bool *unsent) {
    struct kw_outgoing *reply;

    *unsent = false;
    while ((reply = kw_queues_pop()) != NULL) {
        if (send(socket_fd, reply->message.bytes, reply->message.size,
                 MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
            bool full = errno == EAGAIN || errno == EINTR || errno == ENOBUFS;

            kw_queues_unpop(reply);
            *unsent = full;
            return full;
        }
        kw_queues_sent(reply);
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
    waiting = kw_queues_busy();
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

void kw_link_reply(uint32_t connection, struct kw_message *message) {
    if (kw_queues_reply(connection, message)) {
        wake();
    }
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
    kw_queues_reset();
    close(wake_fd);
    wake_fd = -1;
}
