/* The one program of the sample images: small, static, quick to start, ends at SIGTERM.
 *
 *   server echo PORT            HTTP and UDP: answers with the client's address and this container's name
 *   server web VERSION PORT     HTTP: answers with a version; /health is well; /slow takes SECONDS from the query
 *   server exit CODE [SECONDS]  ends by itself
 *   server probe PORT PATH      health check: 0 if the path answers 200
 *   server sick PORT            HTTP that answers, but 500 at /health
 *   server get HOST PORT PATH   prints the body; names are asked of the resolver in /etc/resolv.conf
 *   server udp HOST PORT TEXT   sends one datagram and prints the answer
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char *mode, *version = "";
static char host[256];

static void finish(int sig) {
    (void)sig;
    _exit(0);
}

static void die(const char *what) {
    perror(what);
    exit(2);
}

static void *serve(void *arg) {
    int fd = (int)(long)arg;
    char request[4096], body[2048], head[256], ip[INET6_ADDRSTRLEN] = "?";
    struct sockaddr_in peer, here;
    socklen_t length = sizeof peer;
    size_t got = 0;
    ssize_t n;
    while (got < sizeof request - 1 && (n = read(fd, request + got, sizeof request - 1 - got)) > 0) {
        got += (size_t)n;
        request[got] = 0;
        if (strstr(request, "\r\n\r\n")) break;
    }
    request[got] = 0;
    char path[512] = "/";
    sscanf(request, "%*15s %511s", path);
    int status = 200;
    if (getpeername(fd, (struct sockaddr *)&peer, &length) == 0) inet_ntop(AF_INET, &peer.sin_addr, ip, sizeof ip);
    char own[INET6_ADDRSTRLEN] = "?";
    length = sizeof here;
    if (getsockname(fd, (struct sockaddr *)&here, &length) == 0) inet_ntop(AF_INET, &here.sin_addr, own, sizeof own);
    if (!strcmp(mode, "sick") && !strcmp(path, "/health")) status = 500;
    if (!strncmp(path, "/slow?", 6)) sleep((unsigned)atoi(path + 6));
    if (!strcmp(path, "/health")) snprintf(body, sizeof body, "%s\n", status == 200 ? "well" : "sick");
    else if (!strcmp(mode, "web")) snprintf(body, sizeof body, "web %s on %s\n", version, host);
    else snprintf(body, sizeof body, "client=%s port=%d server=%s host=%s\n", ip, ntohs(peer.sin_port), own, host);
    int size = snprintf(head, sizeof head, "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n"
                        "Connection: close\r\n\r\n", status, status == 200 ? "OK" : "Internal Server Error", strlen(body));
    if (write(fd, head, (size_t)size) < 0 || write(fd, body, strlen(body)) < 0) perror("answer");
    shutdown(fd, SHUT_WR);
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    while (poll(&wait, 1, 1000) > 0 && read(fd, request, sizeof request) > 0) continue;
    close(fd);
    return NULL;
}

static void *datagrams(void *arg) {
    int fd = (int)(long)arg;
    char in[1500], out[2048], ip[INET_ADDRSTRLEN];
    for (;;) {
        struct sockaddr_in peer;
        socklen_t length = sizeof peer;
        ssize_t n = recvfrom(fd, in, sizeof in - 1, 0, (struct sockaddr *)&peer, &length);
        if (n < 0) continue;
        in[n] = 0;
        inet_ntop(AF_INET, &peer.sin_addr, ip, sizeof ip);
        int size = snprintf(out, sizeof out, "client=%s port=%d host=%s said=%s\n", ip, ntohs(peer.sin_port), host, in);
        sendto(fd, out, (size_t)size, 0, (struct sockaddr *)&peer, length);
    }
    return NULL;
}

static void listen_at(int port) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0), udp = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1024)) die("listen");
    if (bind(udp, (struct sockaddr *)&address, sizeof address)) die("bind udp");
    pthread_create(&thread, &attributes, datagrams, (void *)(long)udp);
    printf("%s %s listens at port %d on %s\n", mode, version, port, host);
    fflush(stdout);
    for (;;) {
        int client = accept(fd, NULL, NULL);
        if (client < 0) continue;
        if (pthread_create(&thread, &attributes, serve, (void *)(long)client)) close(client);
    }
}

/* A static program has no libc resolver to load: ask the first nameserver for an A record. */
static int resolve(const char *name, struct in_addr *address) {
    if (inet_aton(name, address)) return 0;
    char line[256], server[64] = "";
    FILE *file = fopen("/etc/resolv.conf", "r");
    while (file && fgets(line, sizeof line, file))
        if (!*server) sscanf(line, "nameserver %63s", server);
    if (file) fclose(file);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(53)};
    if (!*server || !inet_aton(server, &to.sin_addr)) return -1;
    unsigned char q[512] = {0x51, 0x52, 1, 0, 0, 1}, a[1500];
    size_t size = 12;
    for (const char *label = name; *label;) {
        size_t length = strcspn(label, ".");
        if (!length || length > 63 || size + length + 6 > sizeof q) return -1;
        q[size++] = (unsigned char)length;
        memcpy(q + size, label, length);
        size += length;
        label += length + (label[length] == '.');
    }
    q[size++] = 0;
    q[size++] = 0, q[size++] = 1, q[size++] = 0, q[size++] = 1;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct timeval limit = {.tv_sec = 3};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (sendto(fd, q, size, 0, (struct sockaddr *)&to, sizeof to) < 0) return -1;
    ssize_t n = recv(fd, a, sizeof a, 0);
    close(fd);
    if (n < (ssize_t)size || (a[3] & 15)) return -1;
    for (ssize_t at = (ssize_t)size; at + 12 <= n;) {
        while (at < n && a[at] && (a[at] & 0xc0) != 0xc0) at += a[at] + 1;
        at += (at < n && (a[at] & 0xc0) == 0xc0) ? 2 : 1;
        if (at + 10 > n) return -1;
        int type = a[at] << 8 | a[at + 1], length = a[at + 8] << 8 | a[at + 9];
        at += 10;
        if (type == 1 && length == 4 && at + 4 <= n) {
            memcpy(address, a + at, 4);
            return 0;
        }
        at += length;
    }
    return -1;
}

static int reach(const char *name, int port, int kind) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    struct timeval limit = {.tv_sec = 5};
    if (resolve(name, &to.sin_addr)) {
        fprintf(stderr, "no address for %s\n", name);
        exit(3);
    }
    int fd = socket(AF_INET, kind, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) die("connect");
    return fd;
}

static int get(const char *name, int port, const char *path, int show) {
    char out[1024], in[65536];
    int fd = reach(name, port, SOCK_STREAM), size = snprintf(out, sizeof out, "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", path, name);
    if (write(fd, out, (size_t)size) != size) die("send");
    size_t got = 0;
    ssize_t n;
    while (got < sizeof in - 1 && (n = read(fd, in + got, sizeof in - 1 - got)) > 0) got += (size_t)n;
    in[got] = 0;
    int status = 0;
    sscanf(in, "HTTP/%*s %d", &status);
    char *body = strstr(in, "\r\n\r\n");
    if (show && body) fputs(body + 4, stdout);
    return status == 200 ? 0 : 1;
}

int main(int argc, char **argv) {
    mode = argc > 1 ? argv[1] : "";
    gethostname(host, sizeof host - 1);
    signal(SIGTERM, finish);
    signal(SIGINT, finish);
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(mode, "echo") && argc == 3) listen_at(atoi(argv[2]));
    if (!strcmp(mode, "sick") && argc == 3) listen_at(atoi(argv[2]));
    if (!strcmp(mode, "web") && argc == 4) {
        version = argv[2];
        listen_at(atoi(argv[3]));
    }
    if (!strcmp(mode, "exit") && argc >= 3) {
        if (argc > 3) sleep((unsigned)atoi(argv[3]));
        fprintf(stderr, "ends with %s, as asked\n", argv[2]);
        return atoi(argv[2]);
    }
    if (!strcmp(mode, "probe") && argc == 4) return get("127.0.0.1", atoi(argv[2]), argv[3], 0);
    if (!strcmp(mode, "get") && argc == 5) return get(argv[2], atoi(argv[3]), argv[4], 1);
    if (!strcmp(mode, "udp") && argc == 5) {
        char answer[2048];
        int fd = reach(argv[2], atoi(argv[3]), SOCK_DGRAM);
        if (send(fd, argv[4], strlen(argv[4]), 0) < 0) die("send");
        ssize_t n = recv(fd, answer, sizeof answer, 0);
        if (n < 0) die("no answer");
        return fwrite(answer, 1, (size_t)n, stdout) == (size_t)n ? 0 : 1;
    }
    fprintf(stderr, "usage: server echo|web|sick|exit|probe|get|udp ...\n");
    return 64;
}
