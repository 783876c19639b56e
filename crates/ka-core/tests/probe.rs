//! Probes real connections on loopback, and asks the kernel for the settings by socket2.
use ka_core::{Alive, Socket};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;
#[test]
fn quick() {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let c = TcpStream::connect(l.local_addr().unwrap()).unwrap();
    let _a = l.accept().unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    let s = Socket::new(c.as_raw_fd());
    for _ in 0..3 {
        println!("{:?} {:?}", s.probe(Duration::from_secs(2)), s.settings());
        std::thread::sleep(Duration::from_millis(1100));
    }
}
