/* A server that has its answer ready: canned BYTES
   Answers every request on the one connection that it takes with a body of that many bytes, and does nothing else: what a client and
   the loopback take for an answer of that length. Prints its port. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void fail(const char *what) {
    perror(what);
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    size_t body = strtoul(argv[1], NULL, 10);
    char *answer = malloc(body + 100);
    if (!answer) fail("memory");
    size_t head = sprintf(answer, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", body);
    memset(answer + head, 'x', body);

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (bind(listener, (void *)&address, length) || listen(listener, 1) || getsockname(listener, (void *)&address, &length)) fail("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    int client = accept(listener, NULL, NULL);
    if (client < 0) fail("accept");
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);

    static char request[1 << 16];
    size_t filled = 0;
    ssize_t got;
    while ((got = read(client, request + filled, sizeof request - 1 - filled)) > 0) {
        filled += got;
        request[filled] = 0;
        char *end = strstr(request, "\r\n\r\n"), *announced = strcasestr(request, "\r\ncontent-length:");
        if (!end || (size_t)(end + 4 - request) + (announced ? strtoul(announced + 17, NULL, 10) : 0) > filled) continue;
        filled = 0;
        for (size_t sent = 0; sent < head + body;) {
            ssize_t wrote = write(client, answer + sent, head + body - sent);
            if (wrote < 0) fail("write");
            sent += wrote;
        }
    }
    return 0;
}
