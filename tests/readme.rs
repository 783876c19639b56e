//! Tests that the programs in README.md compile and do what README.md says.

use std::fs;
use std::io::Write as _;
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};

use ka_test::artifact::release;
use ka_test::child::{stdout, succeed};
use ka_test::path::{root, scratch};

/// Returns the code blocks of a language in README.md.
fn blocks(language: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let opening = format!("\n```{language}\n");
    text.split(&opening).skip(1).map(|rest| rest.split("\n```").next().unwrap().to_owned()).collect()
}

/// Runs the client of README.md, and `end` with the server's end of the connection. Checks the client's keepalive
/// timer. Returns the client's status, output and messages.
fn client(end: impl FnOnce(std::net::TcpStream)) -> (Option<i32>, String, String) {
    let programs: Vec<_> = blocks("c").into_iter().filter(|text| text.contains("int main(")).collect();
    assert_eq!(programs.len(), 1);
    let folder = scratch("client");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("client.c"), programs[0].clone() + "\n").unwrap();
    succeed(
        Command::new("cc")
            .args(["-std=c99", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o"])
            .arg(folder.join("client"))
            .arg(folder.join("client.c"))
            .arg("-I")
            .arg(root().join("include"))
            .arg(release().join("libka.a")),
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let running = Command::new(folder.join("client"))
        .args(["127.0.0.1", &port])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (stream, _) = listener.accept().unwrap();
    let timers =
        stdout(Command::new("ss").args(["-tno", "state", "established", "dport", "=", &format!(":{port}")]));
    let is_armed =
        ["1min", "59sec"].iter().any(|left| timers.contains(&format!("timer:(keepalive,{left},0)")));
    assert!(is_armed, "{timers}");
    end(stream);
    let output = running.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_client_has_keepalive_and_prints_how_the_connection_ended() {
    let closed = client(|mut stream| {
        stream.write_all(b"hello\n").unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
    });
    assert_eq!(closed, (Some(0), "hello\n".to_owned(), String::new()));

    let reset = client(|stream| {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        // SAFETY: the pointer is to a `linger`, and the size is its size.
        let result = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                u32::try_from(size_of_val(&linger)).unwrap(),
            )
        };
        assert_eq!(result, 0);
    });
    assert_eq!(reset, (Some(1), String::new(), "the peer has restarted\n".to_owned()));
}
