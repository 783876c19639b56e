/*
 * asio_server PORT: an echo server with Asio (Debian's libasio-dev). It finds dead peers by keepalive, and closes
 * connections on which nothing has arrived for a minute.
 *
 * The server sets keepalive once, on the listener. Accepted connections inherit it. ka needs only native_handle().
 */
#include <array>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>

#include <asio.hpp>
#include <ka.hpp>

using asio::ip::tcp;
using namespace std::chrono_literals;

class server {
public:
    server(asio::io_context &io, unsigned short port) : acceptor_(io), timer_(io), pause_(io) {
        const tcp::endpoint any{tcp::v4(), port};
        acceptor_.open(any.protocol());
        acceptor_.set_option(tcp::acceptor::reuse_address(true));
        ka::enable(acceptor_.native_handle(), ka::policy{}.idle(60s).intvl(10s).cnt(5));
        acceptor_.bind(any);
        acceptor_.listen();
        std::cout << "listening on port " << acceptor_.local_endpoint().port() << std::endl;
        accept();
    }

private:
    struct connection {
        tcp::socket socket;
        std::array<char, 4096> bytes;
    };

    void accept() {
        acceptor_.async_accept([this](std::error_code ec, tcp::socket socket) {
            if (ec) {
                // For example, no descriptor is free. Try again later, when connections may have closed.
                std::cout << "not accepted: " << ec.message() << std::endl;
                pause_.expires_after(100ms);
                return pause_.async_wait([this](std::error_code) { accept(); });
            }
            const int fd = socket.native_handle();
            const auto made = std::make_shared<connection>(connection{std::move(socket), {}});
            connections_[fd] = made;
            silent_.touch(fd);
            std::cout << "accepted: " << ka::format(ka::query(fd)) << std::endl;
            read(fd, made);
            look();
            accept();
        });
    }

    void read(int fd, const std::shared_ptr<connection> &from) {
        from->socket.async_read_some(asio::buffer(from->bytes), [=](std::error_code ec, std::size_t size) {
            // end() has closed the connection. Its descriptor may already be that of a new connection.
            if (!from->socket.is_open())
                return;
            if (ec)
                return end(fd, ec.message());
            silent_.touch(fd);
            asio::async_write(from->socket, asio::buffer(from->bytes, size), [=](std::error_code failed, std::size_t) {
                if (!from->socket.is_open())
                    return;
                failed ? end(fd, failed.message()) : read(fd, from);
            });
        });
    }

    // Waits until a connection may be due.
    void look() {
        const auto time = silent_.next();
        if (!time)
            return;
        timer_.expires_after(*time);
        timer_.async_wait([this](std::error_code ec) {
            if (ec)
                return;
            for (const int fd : silent_.expired())
                end(fd, "silent for too long");
            look();
        });
    }

    void end(int fd, const std::string &why) {
        std::cout << "ended: " << why << std::endl;
        silent_.forget(fd); // before the descriptor is closed
        const auto gone = connections_.find(fd);
        gone->second->socket.close();
        connections_.erase(gone);
    }

    tcp::acceptor acceptor_;
    asio::steady_timer timer_;
    asio::steady_timer pause_;
    ka::reaper silent_{1min};
    std::map<int, std::shared_ptr<connection>> connections_;
};

int main(int argc, char **argv) {
    try {
        if (argc != 2) {
            std::cerr << "usage: asio_server PORT\n";
            return EXIT_FAILURE;
        }
        asio::io_context io;
        server echo{io, static_cast<unsigned short>(std::stoul(argv[1]))};
        io.run();
    } catch (const std::exception &error) {
        std::cerr << "asio_server: " << error.what() << '\n';
        return EXIT_FAILURE;
    }
}
