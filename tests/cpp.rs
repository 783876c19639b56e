//! ka.hpp: that every compiler takes it under each standard, that it does what it says, and that servers with Asio and
//! with libuv which use it have the policy on their connections.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;

use ka_test::artifact::release;
use ka_test::child::{stderr, succeed};
use ka_test::compiler::{Link, compile};
use ka_test::example::Server;
use ka_test::path::{root, scratch};
use ka_test::socket::established;

const STRICT: [&str; 9] = [
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
    "-Wsign-conversion",
    "-Wshadow",
    "-Wold-style-cast",
    "-Wundef",
    "-Werror",
];

/// Compiled without a warning, and run: the program asks the kernel.
fn tried(compiler: &str) {
    let source = root().join("tests/cpp/hpp.cpp");
    for options in [
        &["-std=c++17"][..],
        &["-std=c++20"],
        &["-std=c++2b"],
        &["-std=c++17", "-fno-exceptions", "-fno-rtti"],
    ] {
        let mut command = Command::new(compiler);
        let program = compile(command.args(options).args(STRICT).arg("-O1"), &source, Link::Static);
        succeed(&mut Command::new(program));
    }
}

#[test]
fn gcc_takes_it_and_it_does_what_it_says() {
    tried("g++");
}

#[test]
fn clang_takes_it_and_it_does_what_it_says() {
    tried("clang++");
}

/// What must not compile does not, and for that reason.
#[test]
fn a_mistake_that_the_compiler_can_see_it_sees() {
    for (code, reason) in [
        ("constexpr auto p = ka::policy{}.idle(std::chrono::milliseconds{1500});", "constant expression"),
        ("auto p = ka::policy{}.idle(60);", "no matching"),
        ("ka::reaper r{std::chrono::seconds{1}}; ka::reaper s = r;", "deleted"),
        ("ka::policy{}.cnt(std::chrono::seconds{5});", "cnt"),
        ("auto p = ka::policy{}.idle(std::chrono::seconds{60});", ""),
    ] {
        let source = scratch("mistake.cpp");
        std::fs::write(&source, format!("#include <ka.hpp>\nint main() {{ {code} }}\n")).unwrap();
        for compiler in ["g++", "clang++"] {
            let mut command = Command::new(compiler);
            command
                .args(["-std=c++17", "-fsyntax-only", "-x", "c++", "-I"])
                .arg(root().join("include"))
                .arg(&source);
            let output = command.output().unwrap();
            let said = stderr(&output);
            assert_eq!(output.status.success(), reason.is_empty(), "{compiler}: {code}\n{said}");
            assert!(said.contains(reason), "{compiler}: {code}\n{said}");
        }
    }
}

/// A connection that a server of bindings/cpp/ accepts has the listener's policy: ss(8) shows the kernel's timer.
fn serves(name: &str) {
    release();
    let folder = root().join("bindings/cpp");
    succeed(Command::new("make").arg("-C").arg(&folder).arg(name));
    let program: &Path = &folder.join(name);
    let (mut server, _) = Server::spawn(Command::new(program).arg("0"));
    let mut connection = server.connect();
    connection.write_all(b"hello").unwrap();
    let mut echoed = [0; 5];
    connection.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"hello");
    assert_eq!(server.line(), "accepted: idle=60,intvl=10,cnt=5,user_timeout=0");

    let filter = format!("sport = :{}", server.port);
    let sockets = established(&filter);
    assert_eq!(sockets.lines().count(), 1, "{sockets}");
    assert!(
        sockets.contains("timer:(keepalive,59sec,0)") || sockets.contains("timer:(keepalive,1min,0)"),
        "{sockets}"
    );
    // The peer's end has none: it is the server that set it.
    let theirs = established(&filter.replace("sport", "dport"));
    assert!(!theirs.contains("keepalive"), "{theirs}");

    drop(connection);
    assert!(server.line().starts_with("ended: "), "it did not notice");
    // It goes on.
    server.connect().write_all(b"again").unwrap();
    assert!(server.line().starts_with("accepted: "));
}

#[test]
fn a_server_with_asio() {
    serves("asio_server");
}

#[test]
fn a_server_with_libuv() {
    serves("uv_server");
}
