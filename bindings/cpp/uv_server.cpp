/*
 * uv_server PORT: an echo server with libuv (Debian's libuv1-dev). It finds dead peers by keepalive.
 *
 * The server sets keepalive once, on the listener. Accepted connections inherit it. ka needs only the listener's
 * descriptor, which uv_fileno returns. uv_tcp_keepalive takes only the idle time, and needs a call for each connection.
 */
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <netinet/in.h>
#include <string>

#include <ka.hpp>
#include <uv.h>

using namespace std::chrono_literals;

namespace {

void check(int result, const char *what) {
    if (result < 0) {
        std::cerr << "uv_server: " << what << ": " << uv_strerror(result) << '\n';
        std::exit(EXIT_FAILURE);
    }
}

template <class Handle> uv_handle_t *handle(Handle *any) { return reinterpret_cast<uv_handle_t *>(any); }
template <class Handle> uv_stream_t *stream(Handle *any) { return reinterpret_cast<uv_stream_t *>(any); }

int descriptor(uv_tcp_t *tcp) {
    uv_os_fd_t fd = -1;
    check(uv_fileno(handle(tcp), &fd), "uv_fileno");
    return fd;
}

void end(uv_stream_t *client, int status) {
    std::cout << "ended: " << (status == UV_EOF ? "the peer closed" : uv_strerror(status)) << std::endl;
    uv_close(handle(client), [](uv_handle_t *closed) { delete reinterpret_cast<uv_tcp_t *>(closed); });
}

struct answer {
    uv_write_t request;
    std::unique_ptr<char[]> bytes;
};

void make_room(uv_handle_t *, size_t size, uv_buf_t *room) {
    *room = uv_buf_init(new char[size], static_cast<unsigned>(size));
}

void echo(uv_stream_t *client, ssize_t size, const uv_buf_t *buffer) {
    std::unique_ptr<char[]> bytes{buffer->base};
    if (size < 0)
        return end(client, static_cast<int>(size));
    if (size == 0)
        return;
    uv_buf_t out = uv_buf_init(bytes.get(), static_cast<unsigned>(size));
    auto *back = new answer{{}, std::move(bytes)};
    back->request.data = back;
    const int result = uv_write(&back->request, client, &out, 1,
                                [](uv_write_t *done, int) { delete static_cast<answer *>(done->data); });
    if (result < 0) {
        delete back;
        end(client, result);
    }
}

void accept(uv_stream_t *listener, int status) {
    check(status, "a connection");
    auto *client = new uv_tcp_t;
    check(uv_tcp_init(listener->loop, client), "uv_tcp_init");
    check(uv_accept(listener, stream(client)), "uv_accept");
    std::cout << "accepted: " << ka::format(ka::query(descriptor(client))) << std::endl;
    check(uv_read_start(stream(client), make_room, echo), "uv_read_start");
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 2) {
        std::cerr << "usage: uv_server PORT\n";
        return EXIT_FAILURE;
    }
    uv_loop_t *loop = uv_default_loop();
    uv_tcp_t listener;
    sockaddr_in any;
    check(uv_ip4_addr("0.0.0.0", std::atoi(argv[1]), &any), "the port");
    check(uv_tcp_init(loop, &listener), "uv_tcp_init");
    // libuv creates the socket when the address is set.
    check(uv_tcp_bind(&listener, reinterpret_cast<sockaddr *>(&any), 0), "uv_tcp_bind");
    std::error_code ec;
    ka::enable(descriptor(&listener), ka::policy{}.idle(60s).intvl(10s).cnt(5), ec);
    if (ec) {
        std::cerr << "uv_server: keepalive: " << ec.message() << '\n';
        return EXIT_FAILURE;
    }
    check(uv_listen(stream(&listener), 128, accept), "uv_listen");

    sockaddr_in bound;
    int size = sizeof bound;
    check(uv_tcp_getsockname(&listener, reinterpret_cast<sockaddr *>(&bound), &size), "uv_tcp_getsockname");
    std::cout << "listening on port " << ntohs(bound.sin_port) << std::endl;
    return uv_run(loop, UV_RUN_DEFAULT);
}
