//! Tests the programs in c-examples: their messages about wrong arguments, and about each way a connection can end.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use ka_test::child::{stderr, stdout, succeed};
use ka_test::example::{Server, example};
use ka_test::kernel::{has_ipv6, sysctl};
use ka_test::lines::Lines;
use ka_test::namespace::in_own_network_namespace;
use ka_test::path::root;
use ka_test::socket::established;
use socket2::SockRef;

fn client(args: &[&str]) -> Output {
    Command::new(example("tcp_keepalive_client")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn start(args: &[&str]) -> (Server, Vec<String>) {
    Server::spawn(Command::new(example("tcp_keepalive_server")).args(args).arg("0"))
}

#[test]
fn messages_about_wrong_options_name_the_letter() {
    for program in ["tcp_keepalive_client", "tcp_keepalive_server"] {
        for (args, message) in [
            (&["-c"][..], "option requires an argument: -c"),
            (&["-d"], "option requires an argument: -d"),
            (&["-i"], "option requires an argument: -i"),
            (&["-x", "1"], "unrecognized option: -x"),
            (
                &["-c", "0", "1"],
                "invalid count of probes for option -c: \"0\" (must be a number from 1 to 127)",
            ),
            (&["-c", "128", "1"], "invalid count of probes for option -c: \"128\""),
            (
                &["-d", "32768", "1"],
                "invalid idle seconds for option -d: \"32768\" (must be a number from 1 to 32767)",
            ),
            (&["-d", "", "1"], "invalid idle seconds for option -d: \"\""),
            (&["-i", "-5", "1"], "invalid interval seconds for option -i: \"-5\""),
            (&["-i", "5s", "1"], "invalid interval seconds for option -i: \"5s\""),
            (&["-i", " 5", "1"], "invalid interval seconds for option -i: \" 5\""),
            (&["-d", "99999999999999999999", "1"], "invalid idle seconds for option -d"),
            (&[], "missing argument"),
            (&["127.0.0.1:1", "127.0.0.1:2"], "too many arguments"),
        ] {
            let output = Command::new(example(program)).args(args).output().unwrap();
            let printed = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{program} {args:?}: {printed}");
            assert!(printed.starts_with(&format!("{program}: {message}")), "{program} {args:?}: {printed}");
            assert!(printed.contains("usage: "), "{program} {args:?}: {printed}");
        }
    }
    for (args, message) in [
        (
            &["-a", "0", "127.0.0.1:1"][..],
            "invalid age for option -a: \"0\" (must be a number from 1 to 86400)",
        ),
        (&["-t", "60001", "127.0.0.1:1"], "invalid timeout for option -t: \"60001\""),
        (&["-t"], "option requires an argument: -t"),
        (&["-c", "5", "127.0.0.1:1"], "unrecognized option: -c"),
        (&[], "missing argument: HOST:PORT"),
        (&["127.0.0.1:1", "127.0.0.1:2"], "too many arguments"),
        (&["127.0.0.1"], "invalid HOST:PORT: \"127.0.0.1\""),
    ] {
        let output = Command::new(example("pool_check")).args(args).output().unwrap();
        let printed = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {printed}");
        assert!(printed.starts_with(&format!("pool_check: {message}")), "{args:?}: {printed}");
        assert!(printed.contains("usage: "), "{args:?}: {printed}");
    }
    for address in
        ["127.0.0.1", "127.0.0.1:", ":5050", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:http", "::1:5050"]
            .into_iter()
            .chain(["[::1]", "[::1]5050", "[]:5050", "[::1:5050", "::1]:5050", "127.0.0.1:5050x", ""])
    {
        let output = client(&[address]);
        assert_eq!(output.status.code(), Some(1), "{address}");
        assert!(
            stderr(&output).contains(&format!("invalid HOST:PORT: \"{address}\"")),
            "{address}: {}",
            stderr(&output)
        );
    }
    for port in ["-1", "65536", "http", "50 50", ""] {
        let output = Command::new(example("tcp_keepalive_server")).arg(port).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let printed = stderr(&output);
        assert!(port == "-1" || printed.contains(&format!("invalid PORT: \"{port}\"")), "{printed}");
    }
}

#[test]
fn the_client_prints_its_settings_and_how_the_connection_ended() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let port = listener.local_addr().unwrap().port();
    let peer = thread::spawn(move || {
        // The first connection is closed after a line, the second is reset.
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello\n").unwrap();
        thread::sleep(Duration::from_millis(300));
        drop(stream);
        let (stream, _) = listener.accept().unwrap();
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
        listener
    });

    let output = client(&["-c", "3", "-d", "60", "-i", "10", &address]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(output.stdout, b"hello\n");
    assert_eq!(
        stderr(&output).lines().collect::<Vec<_>>()[..5],
        [
            &format!("going connect to: 127.0.0.1 port {port}"),
            "set SO_KEEPALIVE  = 1",
            "set TCP_KEEPIDLE  = 60",
            "set TCP_KEEPCNT   = 3",
            "set TCP_KEEPINTVL = 10",
        ]
    );
    assert!(stderr(&output).contains("\nclosed by the peer after 0."), "{}", stderr(&output));

    let output = client(&[&address]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("set TCP_KEEPIDLE  = -1\nset TCP_KEEPCNT   = -1\nset TCP_KEEPINTVL = -1\n")
    );
    assert!(
        stderr(&output).contains("\nreset: the peer restarted (ECONNRESET) after 0."),
        "{}",
        stderr(&output)
    );
    drop(peer.join().unwrap());

    let output = client(&[&address]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&format!("cannot connect to {address}: Connection refused")));
}

#[test]
fn the_client_accepts_ipv6_in_brackets_and_names() {
    for (bind, host) in [("[::1]:0", "[::1]"), ("127.0.0.1:0", "localhost")] {
        if host == "[::1]" && !has_ipv6() {
            continue;
        }
        let listener = TcpListener::bind(bind).unwrap();
        let port = listener.local_addr().unwrap().port();
        let peer = thread::spawn(move || drop(listener.accept().unwrap()));
        let output = client(&[&format!("{host}:{port}")]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let name = host.trim_matches(['[', ']']);
        assert!(stderr(&output).starts_with(&format!("going connect to: {name} port {port}\n")));
        peer.join().unwrap();
    }
}

/// `ss -o` shows the keepalive timer that runs.
#[test]
fn the_client_s_connection_has_a_keepalive_timer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut command = Command::new(example("tcp_keepalive_client"));
    let mut child =
        command.args(["-d", "50", &format!("127.0.0.1:{port}")]).stderr(Stdio::null()).spawn().unwrap();
    let (peer, _) = listener.accept().unwrap();
    let sockets = established(&format!("dport = :{port}"));
    drop(peer);
    child.wait().unwrap();
    let armed =
        ["49sec", "50sec"].iter().any(|left| sockets.contains(&format!("timer:(keepalive,{left},0)")));
    assert!(armed, "{sockets}");
}

#[test]
fn the_server_sets_its_listener_and_reports_each_client() {
    let (mut server, printed) = start(&["-c", "4", "-d", "50", "-i", "7"]);
    assert_eq!(
        printed,
        [
            "SO_KEEPALIVE default is OFF",
            "SO_KEEPALIVE set on socket",
            "TCP_KEEPIDLE is 50",
            "TCP_KEEPCNT is 4",
            "TCP_KEEPINTVL is 7"
        ]
    );

    let mut echoed = server.connect();
    let name = echoed.local_addr().unwrap();
    assert_eq!(server.line(), format!("client {name} connected"));
    echoed.write_all(b"echo").unwrap();
    let mut answer = [0; 4];
    echoed.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"echo");
    let sockets = established(&format!("sport = :{} and dport = :{}", server.port, name.port()));
    assert!(
        sockets.contains("timer:(keepalive,"),
        "the accepted connection has not inherited keepalive: {sockets}"
    );
    drop(echoed);
    assert!(server.line().starts_with(&format!("client {name} left after 0.")));

    let rude = server.connect();
    let name = rude.local_addr().unwrap();
    assert_eq!(server.line(), format!("client {name} connected"));
    SockRef::from(&rude).set_linger(Some(Duration::ZERO)).unwrap();
    drop(rude);
    assert!(server.line().starts_with(&format!("client {name} reset the connection (ECONNRESET) after 0.")));

    let six = has_ipv6().then(|| TcpStream::connect(("::1", server.port)).unwrap());
    if let Some(six) = &six {
        assert_eq!(server.line(), format!("client {} connected", six.local_addr().unwrap()));
    }

    server.signal(libc::SIGTERM);
    assert_eq!(server.line(), "ended by Terminated");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

/// Each client sends more than a buffer holds. The server must lose no byte, and must keep serving the other clients.
#[test]
fn the_server_serves_many_at_once() {
    let (mut server, _) = start(&[]);
    let message: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                let stream = server.connect();
                thread::scope(|both| {
                    both.spawn(|| {
                        (&stream).write_all(&message).unwrap();
                        stream.shutdown(std::net::Shutdown::Write).unwrap();
                    });
                    let mut echoed = vec![];
                    (&stream).read_to_end(&mut echoed).unwrap();
                    assert!(echoed == message);
                });
            });
        }
    });
    server.signal(libc::SIGINT);
    assert_eq!(server.lines.by_ref().last().unwrap(), "ended by Interrupt");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

/// The server has descriptors for one client only. It serves the second client when the first has left.
#[test]
fn the_server_accepts_again_when_a_client_frees_its_descriptor() {
    example("tcp_keepalive_server");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 7 && exec \"$0\" 0"]).arg(example("tcp_keepalive_server"));
    let (mut server, _) = Server::spawn(&mut command);
    let first = server.connect();
    assert_eq!(server.line(), format!("client {} connected", first.local_addr().unwrap()));
    let second = server.connect();
    assert_eq!(server.line(), "cannot accept: Too many open files; trying again");
    drop(first);
    let came = format!("client {} connected", second.local_addr().unwrap());
    while server.line() != came {}
}

#[test]
fn a_port_in_use_is_reported() {
    let taken = TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = Command::new(example("tcp_keepalive_server")).arg(&port).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&format!("cannot bind port {port}: Address already in use")));
}

#[test]
fn keepalive_check_prints_settings_and_defaults() {
    let printed = stdout(&mut Command::new(example("keepalive_check")));
    let seen = [
        "SO_KEEPALIVE is OFF\nSO_KEEPALIVE set on socket\nSO_KEEPALIVE is ON\n",
        "idle=60,intvl=10,cnt=5",
        "TCP_KEEPIDLE is 60 s\nTCP_KEEPINTVL is 10 s\nTCP_KEEPCNT is 5 probes\nTCP_USER_TIMEOUT is 0 ms\n",
        "found after 110.0 s, at the latest 124.0 s\nwhile data is unacknowledged after ",
        "state 1 (1 is established), 0 unanswered probes",
        "defaults of this system: keepalive OFF",
    ];
    for part in seen {
        assert!(printed.contains(part), "no {part:?} in:\n{printed}");
    }
}

#[test]
fn the_examples_set_keepalive_only_through_libka() {
    for file in fs::read_dir(root().join("c-examples")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "c") {
            let source = fs::read_to_string(&path).unwrap();
            for line in source.lines().filter(|line| line.contains("sockopt(")) {
                assert!(!line.contains("KEEP"), "{}: {line}", path.display());
            }
            let includes = source.contains("netinet/tcp.h");
            assert!(!includes, "{} includes netinet/tcp.h", path.display());
        }
    }
}

#[test]
fn make_respects_the_compiler_and_its_flags() {
    let plan = stdout(
        Command::new("make")
            .args(["-n", "-B", "CC=some-cc", "CFLAGS=-Og -fsome-flag", "-C"])
            .arg(root().join("c-examples"))
            .arg("keepalive_check"),
    );
    let line = plan.lines().find(|line| line.contains("keepalive_check.c")).unwrap();
    assert!(
        line.contains("some-cc")
            && line.contains("-Og -fsome-flag")
            && line.contains("-Wall -Wextra -Werror"),
        "{plan}"
    );
}

/// Runs `make -C c-examples demo`, as README.md shows it.
#[test]
fn the_demo_finds_a_dead_peer() {
    example("tcp_keepalive_client");
    let printed = stdout(
        Command::new("make").arg("-C").arg(root().join("c-examples")).arg("demo").stdin(Stdio::null()),
    );
    let client_timer = printed
        .lines()
        .any(|line| line.trim_start().starts_with('0') && line.contains("192.0.2.2:5050 timer:(keepalive,"));
    assert!(client_timer, "{printed}");
    assert!(
        printed.matches("  probe  ").count() >= 2 && printed.matches("  answer  ").count() >= 2,
        "{printed}"
    );
    assert!(printed.contains("timed out: dead peer (ETIMEDOUT) after "), "{printed}");
    assert!(printed.contains("died silently (ETIMEDOUT)"), "{printed}");
    assert!(printed.contains("the program without keepalive has noticed nothing"), "{printed}");
    let found = printed.split("found ").nth(1).unwrap().split(' ').next().unwrap();
    let found: f64 = found.parse().unwrap();
    // The connection may have been idle for 2 s already when the cable was pulled. Timers are up to an eighth late.
    assert!((2.5..=6.5).contains(&found), "found after {found} s");
}

/// Sends a request through pool_check, and returns what the pool printed until the answer.
fn request(
    stdin: &mut std::process::ChildStdin,
    lines: &mut Lines<std::process::ChildStdout>,
    word: &str,
) -> String {
    writeln!(stdin, "{word}").unwrap();
    let mut printed = String::new();
    loop {
        let line = lines.expect("the answer");
        printed += &line;
        printed += "\n";
        if line.ends_with(&format!(": {word}")) {
            return printed;
        }
    }
}

#[test]
fn the_pool_throws_connections_away_that_must_not_be_used() {
    let (server, _) = start(&[]);
    let address = format!("127.0.0.1:{}", server.port);
    let mut command = Command::new(example("pool_check"));
    command.args(["-a", "2", "-t", "20000", &address]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = Lines::new("pool_check", child.stdout.take().unwrap());
    assert_eq!(request(&mut stdin, &mut lines, "one"), "connection 1: new\nconnection 1: one\n");
    thread::sleep(Duration::from_millis(1200));
    // The connection is older than a second, so the pool sends a probe.
    let printed = request(&mut stdin, &mut lines, "two");
    assert!(printed.starts_with("connection 1: checked in ") && !printed.contains("new"), "{printed}");
    thread::sleep(Duration::from_millis(2200));
    let printed = request(&mut stdin, &mut lines, "three");
    assert!(printed.contains(" us, thrown away: it is too old\nconnection 2: new\n"), "{printed}");
    drop(server);
    writeln!(stdin, "four").unwrap();
    let line = lines.expect("why the connection is thrown away");
    assert!(
        line.ends_with("thrown away: the server has closed it")
            || line.ends_with("thrown away: Connection reset by peer"),
        "{line}"
    );
    assert_eq!(child.wait().unwrap().code(), Some(1), "no server is left");
}

#[test]
fn the_pool_demo_replaces_a_dropped_connection() {
    example("pool_check");
    let mut command = Command::new("make");
    command.arg("-C").arg(root().join("c-examples")).arg("pool-demo").stdin(Stdio::null());
    let printed = stdout(&mut command);
    for word in ["one", "two", "three", "four", "five"] {
        assert!(printed.contains(&format!(": {word}\n")), "{word}: {printed}");
    }
    let replaced = "thrown away: the server does not answer\n    connection 2: new\n    connection 2: four\n";
    assert!(printed.contains(replaced), "{printed}");
    assert!(printed.contains("thrown away: the server has closed it\n    connection 3: new\n"), "{printed}");
}

#[test]
fn the_capture_shows_answered_probes_and_three_unanswered_ones() {
    example("tcp_keepalive_client");
    let mut command = Command::new("make");
    command.arg("-C").arg(root().join("c-examples")).arg("capture").stdin(Stdio::null());
    let printed = stdout(&mut command);
    let (before, after) = printed.split_once("== 2.").expect("no second part");
    for tool in ["tcpdump | ", "tshark  | "] {
        assert!(before.matches(tool).count() >= 3 + 2 * 2, "{printed}");
        // Three probes, and the RST with which the kernel gives up.
        assert_eq!(after.matches(tool).count(), 4, "{printed}");
    }
    assert_eq!(after.matches("[TCP Keep-Alive]").count(), 3, "{printed}");
    assert!(after.contains("timed out: dead peer (ETIMEDOUT) after "), "{printed}");
}

/// The client shuts down, and then resets the connection while the server still has data for it. write(2) fails with
/// EPIPE, and SIGPIPE would end the server. The network has small buffers.
#[test]
fn the_server_survives_a_client_that_leaves_during_a_write() {
    if !in_own_network_namespace("the_server_survives_a_client_that_leaves_during_a_write") {
        return;
    }
    sysctl("tcp_wmem", "4096 16384 16384");
    let (mut server, _) = start(&[]);
    let gone = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    gone.set_recv_buffer_size(2048).unwrap();
    gone.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], server.port)).into()).unwrap();
    let mut gone = TcpStream::from(gone);
    let name = gone.local_addr().unwrap();
    assert_eq!(server.line(), format!("client {name} connected"));
    gone.write_all(&vec![0; 60_000]).unwrap();
    gone.shutdown(std::net::Shutdown::Write).unwrap();
    thread::sleep(Duration::from_millis(300));
    drop(gone);
    assert!(server.line().starts_with(&format!("client {name} left after 0.")));
    assert!(server.child.try_wait().unwrap().is_none(), "the server has ended");
}

/// The server has no free descriptor for a first client. So no client can leave and free a descriptor, and the server
/// must retry by itself.
#[test]
fn the_server_accepts_again_when_its_descriptor_limit_is_raised() {
    example("tcp_keepalive_server");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -Sn 6 && exec \"$0\" 0"]).arg(example("tcp_keepalive_server"));
    let (mut server, _) = Server::spawn(&mut command);
    let client = server.connect();
    assert_eq!(server.line(), "cannot accept: Too many open files; trying again");
    succeed(Command::new("prlimit").args(["--nofile=64", "--pid"]).arg(server.child.id().to_string()));
    let came = format!("client {} connected", client.local_addr().unwrap());
    while server.line() != came {}
}
