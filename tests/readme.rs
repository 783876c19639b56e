//! The C code that README.md, docs/ and c-examples/minimal_client.c show: it compiles, and does what the text says.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{Shutdown, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ka_test::artifact::release;
use ka_test::child::{stdout, succeed};
use ka_test::path::{root, scratch};
use ka_test::socket::established;
use socket2::SockRef;

/// Returns the code blocks of a page that are marked as `language`.
fn blocks(page: &Path, language: &str) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let opening = format!("\n```{language}\n");
    text.split(&opening).skip(1).map(|rest| rest.split("\n```").next().unwrap().to_owned() + "\n").collect()
}

/// Returns README.md and the pages of docs/.
fn pages() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    [root().join("README.md")].into_iter().chain(docs).collect()
}

fn is_program(code: &str) -> bool {
    code.contains("int main(")
}

/// Returns the compiler, with the flags that a strict project uses.
fn compiler() -> Command {
    let mut command = Command::new("cc");
    command.args(["-std=c99", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"]);
    command.arg(root().join("include"));
    command
}

/// Compiles a program and links it to libka.a. Returns the path of the program.
fn compile(source: &Path) -> PathBuf {
    let program = scratch("program");
    succeed(compiler().arg("-o").arg(&program).arg(source).arg(release().join("libka.a")));
    program
}

/// The first program of README.md prints the output that README.md shows below it.
#[test]
fn the_c_program_of_the_readme_prints_what_it_shows() {
    let readme = root().join("README.md");
    let programs: Vec<_> = blocks(&readme, "c").into_iter().filter(|code| is_program(code)).collect();
    assert_eq!(programs.len(), 1);
    let source = scratch("start").with_extension("c");
    fs::write(&source, &programs[0]).unwrap();
    let console = blocks(&readme, "console");
    let shown = console.iter().find_map(|block| block.strip_prefix("$ cc start.c ")).unwrap();
    assert_eq!(stdout(&mut Command::new(compile(&source))), shown.split_once('\n').unwrap().1);
}

/// Puts each piece of C that is not a whole program into a function. The variables that it uses are declared first.
#[test]
fn each_piece_of_c_in_the_documentation_compiles() {
    let mut code = String::from(
        "#include <ka.h>\n#include <stdio.h>\n#include <sys/epoll.h>\n\
         extern struct epoll_event events[64];\n\
         extern struct ka_beat beat;\n\
         extern struct ka_reaper *reaper;\n\
         extern int fd, fds[64], epoll, ready, count;\n\
         extern uint64_t now_ms, last;\n\
         extern uint8_t key[32], nonce[KA_BEAT_NONCE_SIZE], frame[KA_BEAT_SIZE];\n\
         extern size_t key_size;\n",
    );
    let mut pieces = 0;
    for page in pages() {
        for piece in blocks(&page, "c").into_iter().filter(|code| !is_program(code)) {
            // `#line` makes the compiler name the page in its messages.
            writeln!(code, "void piece_{pieces}(void)\n{{\n#line 1 {page:?}\n{piece}}}").unwrap();
            pieces += 1;
        }
    }
    assert!(pieces >= 3, "{pieces} pieces: the documentation has more");
    let source = scratch("pieces").with_extension("c");
    fs::write(&source, code).unwrap();
    succeed(compiler().arg("-c").arg("-o").arg(scratch("object")).arg(source));
}

/// Runs minimal_client, and `end` on the server's side of its connection. Returns its exit status and its output.
fn client(end: impl FnOnce(std::net::TcpStream)) -> (Option<i32>, String, String) {
    let program = compile(&root().join("c-examples/minimal_client.c"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let running = Command::new(program)
        .args(["127.0.0.1", &port])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (stream, _) = listener.accept().unwrap();
    let timers = established(&format!("dport = :{port}"));
    let is_armed =
        ["1min", "59sec"].iter().any(|left| timers.contains(&format!("timer:(keepalive,{left},0)")));
    assert!(is_armed, "{timers}");
    end(stream);
    let output = running.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_minimal_client_has_keepalive_and_prints_how_the_connection_ended() {
    let closed = client(|mut stream| {
        stream.write_all(b"hello\n").unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
    });
    assert_eq!(closed, (Some(0), "hello\n".to_owned(), String::new()));

    let reset = client(|stream| {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    assert_eq!(reset, (Some(1), String::new(), "the peer has restarted\n".to_owned()));
}
