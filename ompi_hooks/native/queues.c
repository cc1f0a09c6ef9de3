#include "queues.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "stall.h"

enum {
    COMMANDS_MAX = 64, /* far more than a coordinator has under way at once */
    REPLIES_MAX = 128
};

/* Guards everything below; held for a few instructions only. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct kw_incoming *commands[COMMANDS_MAX]; /* a ring */
static unsigned commands_head, commands_len;
static bool command_taken; /* and not finished */
static struct kw_outgoing *replies, **replies_tail = &replies;
static unsigned replies_len;
static uint32_t connection; /* counts connections; that of the current one while connected */

/* Of both threads: the lock is held. */
static struct kw_incoming *command_pop(void) {
    struct kw_incoming *incoming = NULL;

    if (commands_len > 0) {
        incoming = commands[commands_head];
        commands_head = (commands_head + 1) % COMMANDS_MAX;
        commands_len--;
    }
    return incoming;
}

static struct kw_outgoing *reply_pop(void) {
    struct kw_outgoing *reply = replies;

    if (reply != NULL) {
        replies = reply->next;
        replies_len--;
        if (replies == NULL) {
            replies_tail = &replies;
        }
    }
    return reply;
}

bool kw_queues_put(const struct kw_command *command, size_t size) {
    struct kw_incoming *incoming = calloc(1, sizeof *incoming - sizeof incoming->command + size);
    bool queued;

    if (incoming == NULL) {
        return false;
    }
    memcpy(&incoming->command, command, size);
    incoming->received_ns = kw_clock();
    pthread_mutex_lock(&lock);
    incoming->connection = connection;
    queued = commands_len < COMMANDS_MAX;
    if (queued) {
        commands[(commands_head + commands_len) % COMMANDS_MAX] = incoming;
        commands_len++;
    }
    pthread_mutex_unlock(&lock);
    if (!queued) {
        free(incoming);
    }
    return queued;
}

bool kw_queues_busy(void) {
    bool busy;

    pthread_mutex_lock(&lock);
    busy = commands_len > 0 || command_taken;
    pthread_mutex_unlock(&lock);
    return busy;
}

/* What the queue holds is the current connection's: the others' is forgotten when they end. */
struct kw_outgoing *kw_queues_pop(void) {
    struct kw_outgoing *reply;

    pthread_mutex_lock(&lock);
    reply = reply_pop();
    pthread_mutex_unlock(&lock);
    return reply;
}

void kw_queues_unpop(struct kw_outgoing *reply) {
    pthread_mutex_lock(&lock);
    reply->next = replies;
    replies = reply;
    replies_len++;
    if (reply->next == NULL) {
        replies_tail = &reply->next;
    }
    pthread_mutex_unlock(&lock);
}

void kw_queues_sent(struct kw_outgoing *reply) {
    kw_message_release(&reply->message);
    free(reply);
}

void kw_queues_reset(void) {
    struct kw_outgoing *reply;
    struct kw_incoming *command;

    pthread_mutex_lock(&lock);
    connection++;
    while ((command = command_pop()) != NULL) {
        free(command);
    }
    while ((reply = reply_pop()) != NULL) {
        kw_queues_sent(reply);
    }
    pthread_mutex_unlock(&lock);
}

struct kw_incoming *kw_queues_take(void) {
    struct kw_incoming *incoming;

    pthread_mutex_lock(&lock);
    incoming = command_pop();
    command_taken = command_taken || incoming != NULL;
    pthread_mutex_unlock(&lock);
    return incoming;
}

void kw_queues_finish(struct kw_incoming *incoming) {
    free(incoming);
    pthread_mutex_lock(&lock);
    command_taken = false;
    pthread_mutex_unlock(&lock);
}

bool kw_queues_reply(uint32_t to, struct kw_message *message) {
    struct kw_outgoing *reply = malloc(sizeof *reply);
    bool queued = false;

    if (reply != NULL) {
        *reply = (struct kw_outgoing){.connection = to, .message = *message};
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
        return false;
    }
    *message = (struct kw_message){0};
    return true;
}
