//! Programs that nobody wrote for the shim, under it: their own work succeeds, and both ends of a connection have a
//! running keepalive timer, as ss(8) shows it to everybody. Each test has a network of its own.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::{in_a_network_of_its_own, preloaded, scratch, stdout};

/// A program that runs until the test ends.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until somebody listens on a port.
fn listening(port: u16) {
    let end = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < end, "nobody listens on port {port}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until there is a connection to a port, and checks both of its ends: the keepalive timer runs, and has at most
/// the policy's 60 s to go.
fn assert_both_ends_have_the_policy(port: u16) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let filter = format!("( sport = :{port} or dport = :{port} )");
        let sockets = stdout(Command::new("ss").args(["-tnoH", "state", "established"]).arg(filter));
        if sockets.lines().count() >= 2 {
            for socket in sockets.lines() {
                let timer =
                    socket.split_once("timer:(keepalive,").map(|(_, timer)| timer.split(',').next().unwrap());
                let within =
                    timer.is_some_and(|left| left == "1min" || left.ends_with("sec") && left.len() <= 5);
                assert!(within, "no keepalive of 60 s: {socket}");
            }
            return;
        }
        assert!(Instant::now() < end, "no connection to port {port}: {sockets}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn nginx_and_curl() {
    if !in_a_network_of_its_own("nginx_and_curl") {
        return;
    }
    let folder = scratch("nginx");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(folder.join("page"), vec![b'x'; 200_000]).unwrap();
    let own = folder.display();
    let user = if support::is_root() { "user root;" } else { "" };
    let configuration = format!(
        "daemon off; {user} pid {own}/pid; error_log {own}/error; events {{}} http {{ access_log off; \
         client_body_temp_path {own}/a; proxy_temp_path {own}/b; fastcgi_temp_path {own}/c; uwsgi_temp_path {own}/d; \
         scgi_temp_path {own}/e; \
         server {{ listen 127.0.0.1:8080 so_keepalive=off; root {own}; limit_rate 100000; }} }}"
    );
    fs::write(folder.join("conf"), configuration).unwrap();
    let _nginx = Running::start(preloaded("nginx").arg("-c").arg(folder.join("conf")));
    listening(8080);
    let curl = thread::spawn(|| stdout(preloaded("curl").args(["-s", "http://127.0.0.1:8080/page"])));
    assert_both_ends_have_the_policy(8080);
    assert_eq!(curl.join().unwrap().len(), 200_000);
}

#[test]
fn redis() {
    if !in_a_network_of_its_own("redis") {
        return;
    }
    let server = ["--port", "6379", "--save", "", "--bind", "127.0.0.1", "--tcp-keepalive", "300"];
    let _redis = Running::start(preloaded("redis-server").args(server));
    listening(6379);
    let _subscriber = Running::start(preloaded("redis-cli").args(["subscribe", "channel"]));
    assert_both_ends_have_the_policy(6379);
    assert_eq!(stdout(preloaded("redis-cli").args(["set", "key", "value"])), "OK\n");
    assert_eq!(stdout(preloaded("redis-cli").args(["get", "key"])), "value\n");
    let benchmark = stdout(preloaded("redis-benchmark").args(["-q", "-n", "2000", "-t", "set,get"]));
    assert_eq!(benchmark.matches("requests per second").count(), 2, "{benchmark}");
}

#[test]
fn python_and_asyncio() {
    if !in_a_network_of_its_own("python_and_asyncio") {
        return;
    }
    let program = r#"
import asyncio, socket, sys

async def serve(reader, writer):
    writer.write(await reader.readline())
    await writer.drain()
    await asyncio.sleep(3600)

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 7000)
    for factory in (asyncio.open_connection,):
        reader, writer = await factory("127.0.0.1", 7000)
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
    plain = socket.create_connection(("127.0.0.1", 7000))
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
    assert plain.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1, "getsockopt tells the truth"
    plain.sendall(b"plain\n")
    assert await asyncio.get_running_loop().run_in_executor(None, plain.recv, 100) == b"plain\n"
    print("ready", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"#;
    let mut child = preloaded("python3")
        .args([OsStr::new("-c"), OsStr::new(program)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let python = Running(child);
    let mut ready = [0; 5];
    output.read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready");
    assert_both_ends_have_the_policy(7000);
    drop(python);
}

/// And a client without the shim: what the server accepted has it all the same.
#[test]
fn a_server_under_it_finds_clients_that_have_none() {
    if !in_a_network_of_its_own("a_server_under_it_finds_clients_that_have_none") {
        return;
    }
    let _redis = Running::start(preloaded("redis-server").args([
        "--port",
        "6379",
        "--save",
        "",
        "--tcp-keepalive",
        "0",
    ]));
    listening(6379);
    let mut client = TcpStream::connect("127.0.0.1:6379").unwrap();
    client.write_all(b"PING\r\n").unwrap();
    let mut answer = [0; 7];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
    let sockets = stdout(Command::new("ss").args(["-tnoH", "state", "established"]));
    let armed = sockets.lines().filter(|line| line.contains("timer:(keepalive,")).count();
    assert_eq!((sockets.lines().count(), armed), (2, 1), "{sockets}");
}
