// A file system (FUSE) of one file: `silent_files FOLDER FILE` mounts it at FOLDER, where FILE is `file`. It says `mounted`, and
// answers until SIGUSR1; from then on it takes in what it is asked, and is silent.
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static volatile sig_atomic_t silent;
static struct stat served;
static int device, file;

static void be_silent(int signal)
{
    (void)signal;
    silent = 1;
}

static void answer(const struct fuse_in_header *request, int error, const void *body, size_t size)
{
    struct fuse_out_header head = {sizeof head + size, -error, request->unique};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)body, size}};
    // Who asked may be gone.
    ssize_t written = writev(device, parts, size ? 2 : 1);
    (void)written;
}

// Nothing is remembered: each look at the file is a request.
static struct fuse_attr attributes(unsigned long node)
{
    struct fuse_attr attr = {.ino = node, .nlink = 1, .mode = S_IFDIR | 0755, .blksize = 4096};
    if (node == 2) {
        attr.mode = S_IFREG | 0755;
        attr.size = served.st_size;
        attr.blocks = served.st_size / 512;
    }
    return attr;
}

static void heed(const struct fuse_in_header *request, const char *body)
{
    static char content[1 << 17];
    switch (request->opcode) {
    case FUSE_INIT: {
        struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .max_write = 4096,
                                    .max_readahead = sizeof content};
        answer(request, 0, &out, sizeof out);
        return;
    }
    case FUSE_LOOKUP: {
        struct fuse_entry_out out = {.nodeid = 2, .attr = attributes(2)};
        int known = strcmp(body, "file") == 0;
        answer(request, known ? 0 : ENOENT, &out, known ? sizeof out : 0);
        return;
    }
    case FUSE_GETATTR: {
        struct fuse_attr_out out = {.attr = attributes(request->nodeid)};
        answer(request, 0, &out, sizeof out);
        return;
    }
    case FUSE_OPEN: {
        struct fuse_open_out out = {.open_flags = FOPEN_KEEP_CACHE};
        answer(request, 0, &out, sizeof out);
        return;
    }
    case FUSE_READ: {
        struct fuse_read_in in;
        memcpy(&in, body, sizeof in);
        ssize_t got = pread(file, content, in.size < sizeof content ? in.size : sizeof content, in.offset);
        answer(request, got < 0 ? EIO : 0, content, got < 0 ? 0 : got);
        return;
    }
    case FUSE_STATFS: {
        struct fuse_statfs_out out = {0};
        answer(request, 0, &out, sizeof out);
        return;
    }
    case FUSE_FLUSH:
    case FUSE_RELEASE:
        answer(request, 0, NULL, 0);
        return;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
        return;
    default:
        answer(request, ENOSYS, NULL, 0);
    }
}

int main(int argc, char **argv)
{
    static _Alignas(8) char request[1 << 17];
    char options[100];
    file = argc == 3 ? open(argv[2], O_RDONLY) : -1;
    device = open("/dev/fuse", O_RDWR);
    if (file < 0 || device < 0 || fstat(file, &served) != 0)
        return perror("no file, or no /dev/fuse"), 1;
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
    if (mount("silent_files", argv[1], "fuse.silent_files", 0, options) != 0)
        return perror("mount"), 1;
    signal(SIGUSR1, be_silent);
    puts("mounted");
    fflush(stdout);
    for (;;) {
        ssize_t got = read(device, request, sizeof request);
        const struct fuse_in_header *head = (const void *)request;
        if (got < (ssize_t)sizeof *head) {
            if (errno == EINTR || errno == ENOENT)
                continue;
            return 0;
        }
        if (!silent)
            heed(head, request + sizeof *head);
    }
}
