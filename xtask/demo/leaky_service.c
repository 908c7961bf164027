/* The service that `cargo xtask demo` traces: it answers requests that nobody sends and leaks in two places.
 *
 * Grows:  the session cache, which is filled for every request and never cleared (about 300 KiB/s);
 *         an audit trail of every 8th request (about 5 KiB/s).
 * Churns: parsing and rendering free all that they allocate. None of it may show up as held.
 *
 * Runs until it is killed, or until the process that started it has ended.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

/* Functions stay apart, so that stacks have the names that one reads here. The empty asm after a call keeps it from
 * becoming a jump, which would drop the caller from the stack. */
#define FUNCTION __attribute__((noinline, noclone)) static
#define KEEP_CALLER() __asm__ volatile("")

struct session {
    struct session *next;
    unsigned user;
    char *name;
    char *page;
};

struct audit_entry {
    struct audit_entry *previous;
    unsigned user;
    char text[64];
};

static struct session *session_cache;
static struct audit_entry *audit_trail;

FUNCTION void *must(void *block) {
    if (block == NULL) {
        perror("leaky_service");
        exit(1);
    }
    return block;
}

FUNCTION char *parse_request(unsigned number) {
    char *line = must(malloc(96));
    snprintf(line, 96, "GET /users/%u/profile", number);
    char *path = must(strdup(line + 4));
    free(line);
    return path;
}

FUNCTION char *render_page(const char *path) {
    char *page = must(malloc(128));
    for (size_t size = 256; size <= 1024; size *= 2)
        page = must(realloc(page, size));
    snprintf(page, 1024, "<h1>%s</h1>", path);
    return page;
}

FUNCTION void remember_session(unsigned user, const char *path, const char *page) {
    struct session *session = must(calloc(1, sizeof *session));
    session->user = user;
    session->name = must(strdup(path));
    session->page = must(malloc(512));
    snprintf(session->page, 512, "%s", page);
    session->next = session_cache;
    session_cache = session; /* and nobody ever takes it out again */
}

FUNCTION void audit(unsigned user, const char *path) {
    struct audit_entry *entry = must(malloc(sizeof *entry));
    entry->user = user;
    snprintf(entry->text, sizeof entry->text, "%s", path);
    entry->previous = audit_trail;
    audit_trail = entry;
}

FUNCTION void handle_request(unsigned number) {
    char *path = parse_request(number);
    char *page = render_page(path);
    remember_session(number, path, page);
    if (number % 8 == 0)
        audit(number, path);
    free(page);
    free(path);
    KEEP_CALLER();
}

FUNCTION void serve_forever(void) {
    const struct timespec pause = {.tv_nsec = 2 * 1000 * 1000};
    for (unsigned number = 0;; number++) {
        handle_request(number);
        nanosleep(&pause, NULL);
    }
}

int main(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    serve_forever();
    KEEP_CALLER();
    return 0;
}
