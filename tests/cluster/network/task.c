/* The program in the tests' task containers: an echo server that says who it is and whom it sees, and a name look-up.
 *   task serve NAME PORT    TCP and UDP; a connection is greeted, each line is answered
 *   task resolve NAME       addresses by the C library, as any program in a container would ask
 *   task idle               nothing, until SIGTERM
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void on_term(int sig) { (void)sig; _exit(0); }

static int say(char *out, size_t size, const char *name, struct sockaddr_in *who) {
    return snprintf(out, size, "%s %s %d\n", name, inet_ntoa(who->sin_addr), ntohs(who->sin_port));
}

static int serve(const char *name, int port) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)}, who;
    struct pollfd set[1024];
    struct sockaddr_in peers[1024];
    int count = 2, one = 1;
    char line[2048], text[4096];
    set[0].fd = socket(AF_INET, SOCK_STREAM, 0);
    set[1].fd = socket(AF_INET, SOCK_DGRAM, 0);
    setsockopt(set[0].fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(set[0].fd, (void *)&here, sizeof here) || bind(set[1].fd, (void *)&here, sizeof here)) return 1;
    listen(set[0].fd, 512);
    set[0].events = set[1].events = POLLIN;
    for (;;) {
        if (poll(set, count, -1) < 0) return 1;
        for (int i = count - 1; i >= 2; i--) {
            if (!set[i].revents) continue;
            int got = read(set[i].fd, line, sizeof line - 1);
            if (got <= 0) {
                close(set[i].fd);
                count--;
                set[i] = set[count];
                peers[i] = peers[count];
                continue;
            }
            int size = say(text, sizeof text, name, &peers[i]);
            if (write(set[i].fd, text, size) < 0) continue;
        }
        socklen_t length = sizeof who;
        if (set[0].revents & POLLIN) {
            int fd = accept(set[0].fd, (void *)&who, &length);
            if (fd >= 0 && count < 1024) {
                set[count].fd = fd;
                set[count].events = POLLIN;
                set[count].revents = 0;
                peers[count] = who;
                count++;
                int size = say(text, sizeof text, name, &who);
                if (write(fd, text, size) < 0) continue;
            } else if (fd >= 0) close(fd);
        }
        length = sizeof who;
        if (set[1].revents & POLLIN && recvfrom(set[1].fd, line, sizeof line, 0, (void *)&who, &length) >= 0)
            sendto(set[1].fd, text, say(text, sizeof text, name, &who), 0, (void *)&who, sizeof who);
    }
}

static int resolve(const char *name) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int code = getaddrinfo(name, NULL, &hints, &found);
    if (code) {
        printf("error %s\n", gai_strerror(code));
        return 1;
    }
    for (; found; found = found->ai_next)
        if (found->ai_family == AF_INET) printf("%s\n", inet_ntoa(((struct sockaddr_in *)found->ai_addr)->sin_addr));
    return 0;
}

int main(int argc, char **argv) {
    signal(SIGTERM, on_term);
    signal(SIGPIPE, SIG_IGN);
    char own[65] = "";
    gethostname(own, sizeof own - 1);
    if (argc == 4 && !strcmp(argv[1], "serve")) return serve(strcmp(argv[2], "-") ? argv[2] : own, atoi(argv[3]));
    if (argc == 3 && !strcmp(argv[1], "resolve")) return resolve(argv[2]);
    if (argc == 2 && !strcmp(argv[1], "idle")) for (;;) pause();
    return 2;
}
