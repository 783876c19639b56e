// keepalive prints the options of both ends of four connections. In the first, Go sets its own keepalive on both ends.
// In the others, the program disables that for the dialer, for the listener, or for both. Each end has a line, the
// dialer's first: SO_KEEPALIVE, idle, intvl, cnt. With an argument, it then prints "stay", and waits for the end of its
// standard input.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
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
	var open []any
	for _, config := range []net.ListenConfig{{}, {KeepAlive: -1}} {
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
			open = append(open, client, server)
		}
		open = append(open, listener)
	}
	if len(os.Args) > 1 {
		fmt.Println("stay")
		io.Copy(io.Discard, os.Stdin)
	}
	runtime.KeepAlive(open)
}
