//! Tests heartbeat_server and heartbeat_client of c-examples: which clients are accepted, which are refused and why,
//! how silent ones are found, and a flood of 10,000 connections that send nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ka_test::child::{stderr, stdout};
use ka_test::example::{Server, example};
use ka_test::libka::call;
use ka_test::lines::Lines;
use ka_test::log::say;
use ka_test::namespace::in_own_network_namespace;
use ka_test::path::{root, scratch};
use ka_test::process::raise_descriptor_limit;
use ka_test::socket::{established, option};

/// Returns a client's key: 32 times its number.
fn key(client: u64) -> [u8; 32] {
    [u8::try_from(client).unwrap(); 32]
}

/// Writes a key file that only its owner may read.
fn keys(text: &str) -> PathBuf {
    let path = scratch("keys");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Writes a key file with a line for each client.
fn keys_of(clients: &[u64]) -> PathBuf {
    let line = |client: &u64| format!("{client} {}\n", format!("{client:02x}").repeat(32));
    keys(&clients.iter().map(line).collect::<String>())
}

fn server(args: &[&str], keys: &Path) -> Server {
    let mut command = Command::new(example("heartbeat_server"));
    Server::spawn(command.args(args).arg(keys).arg("0")).0
}

/// A connection as a client sees it.
struct Connection {
    stream: TcpStream,
    nonce: [u8; 16],
}

impl Connection {
    fn new(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut nonce = [0; 16];
        stream.read_exact(&mut nonce).unwrap();
        Self { stream, nonce }
    }

    fn name(&self) -> String {
        self.stream.local_addr().unwrap().to_string()
    }

    fn sign(&self, key: &[u8], client: u64, sequence: u64) -> [u8; 56] {
        let (beat, mut frame) = ([client, sequence], [0; 56]);
        // SAFETY: the pointers are valid for the sizes that ka.h requires.
        call(|ka| unsafe {
            (ka.ka_beat_sign)(
                key.as_ptr(),
                key.len(),
                self.nonce.as_ptr(),
                &raw const beat,
                frame.as_mut_ptr(),
            )
        })
        .unwrap();
        frame
    }

    /// Sends a frame and reads the answer. Returns `None` if the server ends the connection.
    fn answer(&mut self, frame: &[u8]) -> Option<u64> {
        let mut answer = [0; 8];
        self.stream.write_all(frame).ok()?;
        self.stream.read_exact(&mut answer).ok()?;
        Some(u64::from_be_bytes(answer))
    }

    fn beat(&mut self, client: u64, sequence: u64) -> Option<u64> {
        self.answer(&self.sign(&key(client), client, sequence))
    }
}

#[test]
fn wrong_arguments_and_key_files_are_rejected_with_the_reason() {
    let good = keys_of(&[1]);
    let good = good.to_str().unwrap();
    for (program, args, message) in [
        (
            "heartbeat_server",
            &["-f", "0", good, "0"][..],
            "invalid seconds until the first heartbeat for option -f: \"0\"",
        ),
        (
            "heartbeat_server",
            &["-t", "x", good, "0"],
            "invalid seconds from one heartbeat to the next for option -t",
        ),
        ("heartbeat_server", &["-c", "128", good, "0"], "invalid count of probes for option -c: \"128\""),
        ("heartbeat_server", &["-b", "1", good, "0"], "unrecognized option: -b"),
        ("heartbeat_server", &[good], "missing argument: KEYS and PORT"),
        ("heartbeat_server", &[good, "65536"], "invalid PORT: \"65536\""),
        ("heartbeat_server", &["/nonexistent", "0"], "cannot read the keys in /nonexistent: No such file"),
        ("heartbeat_server", &["/dev/null", "0"], "/dev/null is not a key file"),
        (
            "heartbeat_client",
            &["-b", "0", good, "h:1"],
            "invalid seconds between heartbeats for option -b: \"0\"",
        ),
        ("heartbeat_client", &[good], "missing argument: KEYS and HOST:PORT"),
        ("heartbeat_client", &[good, "::1:5"], "invalid HOST:PORT: \"::1:5\""),
    ] {
        let output = Command::new(example(program)).args(args).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{program} {args:?}");
        assert!(
            stderr(&output).starts_with(&format!("{program}: {message}")),
            "{args:?}: {}",
            stderr(&output)
        );
    }

    let long = "ab".repeat(65);
    for (text, message) in [
        ("", "has no key"),
        ("# nobody\n\n", "has no key"),
        ("1", "line 1 must have a client's number below 2^64, a blank and a key"),
        ("# one\nx 00", "line 2 does not begin with a client's number"),
        ("-1 00", "line 1 does not begin with a client's number"),
        ("18446744073709551616 00", "line 1 must have a client's number below 2^64"),
        ("1  00", "line 1 has a key that is not in hexadecimal"),
        ("1 00112233445566778899aabbccddee", "line 1 has a key of fewer than 16 bytes"),
        ("1 00112233445566778899aabbccddeef", "line 1 has a key that is not in hexadecimal"),
        (&format!("1 {long}"), "line 1 has a key of more than 64 bytes"),
        ("1 00112233445566778899aabbccddeeff\n1 ffeeddccbbaa99887766554433221100\n", "client 1 has two keys"),
    ] {
        let path = keys(text);
        let output = Command::new(example("heartbeat_server")).arg(&path).arg("0").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(stderr(&output).contains(message), "{text}: {}", stderr(&output));
        assert!(!stderr(&output).contains("00112233"), "a key is printed: {}", stderr(&output));
    }

    for mode in [0o604, 0o602, 0o620, 0o601] {
        let path = keys_of(&[1]);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        for (program, address) in [("heartbeat_server", "0"), ("heartbeat_client", "localhost:1")] {
            let output = Command::new(example(program)).arg(&path).arg(address).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{mode:o}");
            assert!(
                stderr(&output).contains("others may read or write it: chmod 600 it"),
                "{}",
                stderr(&output)
            );
        }
    }
    let output = Command::new(example("heartbeat_client")).arg(keys_of(&[1, 2])).arg("h:1").output().unwrap();
    assert!(stderr(&output).contains("has the keys of 2 clients: it must have one"), "{}", stderr(&output));
}

#[test]
fn peers_are_accepted_or_refused_with_the_reason() {
    let mut server = server(&["-f", "30"], &keys_of(&[1, 2, u64::from(u8::MAX)]));
    let mut one = Connection::new(server.port);
    let name = one.name();
    assert_eq!(one.beat(1, 1), Some(1));
    assert_eq!(server.line(), format!("client 1 connected from {name}"));
    // A frame may come in parts, and the sequence may skip numbers.
    let frame = one.sign(&key(1), 1, 7);
    one.stream.write_all(&frame[..54]).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(one.answer(&frame[54..]), Some(7));
    let recorded = frame;

    let mut other = Connection::new(server.port);
    assert_ne!(one.nonce, other.nonce);
    assert_eq!(other.answer(&recorded), None);
    assert_eq!(
        server.line(),
        format!("{} refused: not signed by client 1 for this connection", other.name())
    );
    let mut forger = Connection::new(server.port);
    assert_eq!(forger.answer(&forger.sign(&key(9), 2, 1)), None);
    assert_eq!(
        server.line(),
        format!("{} refused: not signed by client 2 for this connection", forger.name())
    );
    let mut unknown = Connection::new(server.port);
    assert_eq!(unknown.beat(9, 1), None);
    assert_eq!(server.line(), format!("{} refused: no key for client 9", unknown.name()));
    let mut browser = Connection::new(server.port);
    assert_eq!(browser.answer(b"GET / HTTP/1.1\r\nHost: example.net\r\nUser-Agent: some\r\n\r\n\r\n"), None);
    assert_eq!(server.line(), format!("{} refused: not a heartbeat", browser.name()));
    let mut two = Connection::new(server.port);
    assert_eq!(two.beat(2, 1), Some(1));
    assert_eq!(server.line(), format!("client 2 connected from {}", two.name()));
    assert_eq!(two.answer(&two.sign(&key(255), 255, 2)), None);
    assert_eq!(server.line(), format!("client 2 at {} refused: claims to be another client now", two.name()));

    // Client 1 is still served, until its own beat is replayed.
    assert_eq!(one.beat(1, 8), Some(8));
    assert_eq!(one.answer(&recorded), None);
    assert_eq!(server.line(), format!("client 1 at {name} refused: replay of an earlier heartbeat"));
    let mut leaver = Connection::new(server.port);
    let name = leaver.name();
    assert_eq!(leaver.beat(1, 1), Some(1));
    assert_eq!(server.line(), format!("client 1 connected from {name}"));
    drop(leaver);
    assert_eq!(server.line(), format!("client 1 at {name} left"));

    let _stranger = Connection::new(server.port);
    server.signal(libc::SIGTERM);
    assert_eq!(server.line(), "ended, with 0 clients and 1 strangers");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

/// A stranger has less time than a client, and an incomplete frame does not count as a beat.
#[test]
fn silent_strangers_and_clients_are_found_after_their_timeouts() {
    let mut server = server(&["-f", "1", "-t", "3"], &keys_of(&[1]));
    let mut client = Connection::new(server.port);
    assert_eq!(client.beat(1, 1), Some(1));
    let beaten = Instant::now();
    assert_eq!(server.line(), format!("client 1 connected from {}", client.name()));
    let mut stranger = Connection::new(server.port);
    let came = Instant::now();
    stranger.stream.write_all(&[0; 55]).unwrap();
    let silent = "fell silent: no heartbeat";
    let answers = "(its kernel answers keepalive)";
    assert_eq!(server.line(), format!("{} {silent} since it connected {answers}", stranger.name()));
    let stranger_had = came.elapsed().as_secs_f64();
    assert_eq!(server.line(), format!("client 1 at {} {silent} any more {answers}", client.name()));
    let client_had = beaten.elapsed().as_secs_f64();
    println!("the stranger had {stranger_had:.2} s, the client {client_had:.2} s");
    // A busy machine may be late. The stranger must be found before a client would be.
    assert!((0.9..2.9).contains(&stranger_had), "{stranger_had} s");
    assert!((2.9..10.0).contains(&client_had), "{client_had} s");
    assert_eq!(client.stream.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn the_client_sets_keepalive_and_accepted_connections_inherit_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut client = Command::new(example("heartbeat_client"))
        .args(["-d", "50", "-i", "7", "-c", "4"])
        .arg(keys_of(&[1]))
        .arg(format!("127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (peer, _) = listener.accept().unwrap();
    let sockets = established(&format!("dport = :{port}"));
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(sockets.contains("timer:(keepalive,"), "{sockets}");
    drop(peer);

    let server = server(&["-d", "50", "-i", "7", "-c", "4"], &keys_of(&[1]));
    let connection = Connection::new(server.port);
    let sockets = established(&format!("sport = :{}", server.port));
    assert!(sockets.contains("timer:(keepalive,"), "{sockets}");
    // Keepalive is a setting of each end. It is still off at this end.
    assert_eq!(option(connection.stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE), Ok(0));
}

/// When the server ends and comes back, the client connects again after a second.
#[test]
fn the_client_connects_again() {
    let file = keys_of(&[1]);
    let mut first = server(&[], &file);
    let address = format!("127.0.0.1:{}", first.port);
    let mut client = Command::new(example("heartbeat_client"))
        .args(["-b", "1"])
        .arg(&file)
        .arg(&address)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = Lines::new("heartbeat_client", client.stdout.take().unwrap());
    let mut line = || lines.expect("a line");
    assert_eq!(line(), "connected as client 1");
    assert!(first.line().starts_with("client 1 connected from 127.0.0.1:"));
    first.signal(libc::SIGTERM);
    first.child.wait().unwrap();
    let ended = line();
    assert!(
        ended.starts_with(&format!("{address}: ")) && ended.ends_with("; connecting again in 1 s"),
        "{ended}"
    );
    assert_eq!(line(), format!("{address}: Connection refused; connecting again in 2 s"));
    let mut command = Command::new(example("heartbeat_server"));
    let (mut second, _) = Server::spawn(command.arg(&file).arg(first.port.to_string()));
    assert!(second.line().starts_with("client 1 connected from 127.0.0.1:"));
    assert_eq!(line(), "connected as client 1");

    // The client also finds a server that hangs while its kernel acknowledges all data.
    second.signal(libc::SIGSTOP);
    let hangs = line();
    second.signal(libc::SIGCONT);
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(hangs, format!("{address}: hangs: no answer; connecting again in 1 s"));
}

/// Runs `make -C c-examples heartbeat-demo`, as docs/heartbeat.md shows it.
#[test]
fn the_demo_handles_all_six_peers() {
    let mut command = Command::new("make");
    command.arg("-C").arg(root().join("c-examples")).arg("heartbeat-demo").stdin(Stdio::null());
    example("heartbeat_server");
    let began = Instant::now();
    let printed = stdout(&mut command);
    let seconds = began.elapsed().as_secs();
    assert!(seconds < 30, "{seconds} s");
    for part in [
        "fell silent: no heartbeat since it connected",
        "refused: not signed by client 1 for this connection",
        "refused: not signed by client 2 for this connection",
        "refused: replay of an earlier heartbeat",
        "died silently",
        "fell silent: no heartbeat any more (its kernel answers keepalive)",
        "The server kept the good client, and ended the connections of the five other peers.",
    ] {
        assert!(printed.contains(part), "no {part:?} in:\n{printed}");
    }
}

/// Returns the anonymous memory of a process in bytes, and its number of descriptors. statm is not exact, because each
/// processor reports its counts late.
fn memory_and_descriptors(pid: u32) -> (usize, usize) {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    let kib: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
    (kib * 1024, fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
}

/// Returns the 99th percentile and the maximum, in milliseconds.
fn p99_and_max(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let at = |index: usize| times[index].as_secs_f64() * 1000.0;
    (at(times.len() * 99 / 100), at(times.len() - 1))
}

/// Four clients beat 50 times a second, and a fifth connects 20 times a second, while 10,000 connections are open and
/// send nothing. The clients get their answers all the time. The 10,000 connections are closed a second after their
/// timeout, and the server frees their memory and descriptors.
#[test]
fn ten_thousand_silent_connections_do_not_disturb_clients() {
    const FIRST: u64 = 4;
    if !in_own_network_namespace("ten_thousand_silent_connections_do_not_disturb_clients") {
        return;
    }
    let flood = 10_000.min(raise_descriptor_limit().saturating_sub(200));
    assert!(flood >= 500, "only {flood} descriptors, which are too few for a flood");
    let mut server = server(&["-f", &FIRST.to_string(), "-t", "60"], &keys_of(&[1, 2, 3, 4, 5]));
    let (port, pid) = (server.port, server.child.id());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (1..=4)
            .map(|client| {
                let (over, mut connection) = (&over, Connection::new(port));
                connection.beat(client, 1).unwrap();
                scope.spawn(move || {
                    let mut times = vec![];
                    for sequence in 2.. {
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                        let sent = Instant::now();
                        assert_eq!(connection.beat(client, sequence), Some(sequence));
                        times.push(sent.elapsed());
                        thread::sleep(Duration::from_millis(20));
                    }
                    times
                })
            })
            .collect();
        for _ in 1..=4 {
            assert!(server.line().contains(" connected from "));
        }
        let (memory, descriptors) = memory_and_descriptors(pid);
        // If the server reaps nothing, it prints nothing, and this test would hang. So kill it after 60 s.
        scope.spawn(|| {
            let began = Instant::now();
            while !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(50));
                if began.elapsed().as_secs() > 60 {
                    // SAFETY: kill takes no pointer. Nobody has waited for the child, so its PID is not reused.
                    unsafe { libc::kill(pid.try_into().unwrap(), libc::SIGKILL) };
                    break;
                }
            }
        });
        let newcomer = scope.spawn(|| {
            let mut times = vec![];
            while !over.load(Ordering::Relaxed) {
                let came = Instant::now();
                assert_eq!(Connection::new(port).beat(5, 1), Some(1));
                times.push(came.elapsed());
                thread::sleep(Duration::from_millis(50));
            }
            times
        });

        let began = Instant::now();
        let silent: Vec<_> = (0..flood).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
        let connected = Instant::now();
        let mut peak = memory_and_descriptors(pid);
        while peak.1 < descriptors + flood && began.elapsed().as_secs() < FIRST {
            thread::sleep(Duration::from_millis(20));
            peak = memory_and_descriptors(pid);
        }
        let mut found = 0;
        while found < flood {
            found += usize::from(server.line().contains(" fell silent: no heartbeat since it connected"));
        }
        let gone = connected.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        let beats: Vec<_> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        let comings = newcomer.join().unwrap();
        // The server may still be freeing memory when its last line is read.
        thread::sleep(Duration::from_millis(300));
        let after = memory_and_descriptors(pid);

        let (count, (p99, most)) = (beats.len(), p99_and_max(beats));
        let (came, (came_p99, came_most)) = (comings.len(), p99_and_max(comings));
        say(&format!(
            "flood: {flood} silent connections in {:.2} s, gone {gone:.2} s after the last (their time: {FIRST} s); \
             {count} beats meanwhile, p99 {p99:.2} ms, most {most:.2} ms; \
             {came} new clients meanwhile, p99 {came_p99:.2} ms, most {came_most:.2} ms; \
             resident bytes {memory}, then {}, then {}",
            (connected - began).as_secs_f64(),
            peak.0,
            after.0
        ));
        assert!(peak.1 >= descriptors + flood, "the connections were not all open at the same time");
        // It takes one second on an idle machine. The rest is for a busy one.
        #[expect(clippy::cast_precision_loss, reason = "a few seconds")]
        let latest = FIRST as f64 + 2.5;
        assert!(gone < latest, "gone after {gone} s");
        assert!(count > 200 && p99 < 250.0, "{count} beats, p99 {p99} ms");
        assert!(came > 20 && came_p99 < 1500.0, "{came} came, p99 {came_p99} ms");
        assert!(after.1 <= descriptors, "descriptors");
        let grown = after.0.saturating_sub(memory);
        assert!(grown < (peak.0 - memory) / 3, "{grown} bytes stayed of {}", peak.0 - memory);
        drop(silent);
    });
}
