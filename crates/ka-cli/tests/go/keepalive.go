// keepalive: what the kernel says of Go's connections, by what Go is told of keepalive: its own default, none, and none
// of a listener's connections. A line each: SO_KEEPALIVE, idle, intvl, cnt.
package main

import (
	"context"
	"fmt"
	"net"
	"syscall"
)

func look(conn net.Conn) {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		panic(err)
	}
	raw.Control(func(fd uintptr) {
		get := func(level, name int) int {
			value, err := syscall.GetsockoptInt(int(fd), level, name)
			if err != nil {
				panic(err)
			}
			return value
		}
		fmt.Println(get(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE), get(syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE),
			get(syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL), get(syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT))
	})
}

func main() {
	config := net.ListenConfig{KeepAlive: -1}
	listener, err := config.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	for _, dialer := range []net.Dialer{{}, {KeepAlive: -1}} {
		client, err := dialer.Dial("tcp4", listener.Addr().String())
		if err != nil {
			panic(err)
		}
		server, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		look(client)
		look(server)
	}
}
