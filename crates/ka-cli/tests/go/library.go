// library exports a function to C programs, which listens through Go's net package and returns the descriptor.
package main

import "C"

import (
	"net"
	"syscall"
)

var listener net.Listener

//export serve
func serve() C.int {
	var err error
	listener, err = net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return -1
	}
	raw, err := listener.(*net.TCPListener).SyscallConn()
	if err != nil {
		return -1
	}
	number := -1
	raw.Control(func(fd uintptr) { number, _ = syscall.Dup(int(fd)) })
	return C.int(number)
}

func main() {}
