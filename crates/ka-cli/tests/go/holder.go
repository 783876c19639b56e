// holder does what holder.c does, with Go's net package. It listens, connects to itself, and prints the options of its
// sockets on request.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"syscall"
)

const userTimeout = 18 // TCP_USER_TIMEOUT of <linux/tcp.h>

func look(conn syscall.Conn) {
	raw, err := conn.SyscallConn()
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
		fmt.Println(fd, get(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE), get(syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE),
			get(syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL), get(syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT),
			get(syscall.IPPROTO_TCP, userTimeout))
	})
}

func main() {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	sockets := []syscall.Conn{listener.(*net.TCPListener)}
	open := func() {
		client, err := net.Dial("tcp4", listener.Addr().String())
		if err != nil {
			panic(err)
		}
		server, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		sockets = append(sockets, client.(*net.TCPConn), server.(*net.TCPConn))
	}
	open()
	fmt.Println("ready", listener.Addr().(*net.TCPAddr).Port)
	for input := bufio.NewScanner(os.Stdin); input.Scan(); fmt.Println("end") {
		if input.Text() == "open" {
			open()
			continue
		}
		for _, socket := range sockets {
			look(socket)
		}
	}
}
