//! The programs of c-examples/.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use crate::artifact::release;
use crate::child::succeed;
use crate::lines::Lines;
use crate::path::root;
use crate::process::kill;

/// Builds c-examples/ and returns the path of one of its programs.
pub fn example(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        release();
        succeed(Command::new("make").arg("-C").arg(root().join("c-examples")));
    });
    root().join("c-examples").join(name)
}

/// A running example server, which is killed when this is dropped.
pub struct Server {
    /// The process.
    pub child: Child,
    /// The rest of its standard output.
    pub lines: Lines<ChildStdout>,
    /// The port on which it listens.
    pub port: u16,
}

impl Server {
    /// Starts a server. Returns it and the lines that it printed before it listened.
    pub fn spawn(command: &mut Command) -> (Self, Vec<String>) {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let program = command.get_program().to_string_lossy().into_owned();
        let mut lines = Lines::new(&program, child.stdout.take().unwrap());
        let mut printed = vec![];
        let port = loop {
            let line = lines.expect("the port on which it listens");
            if let Some(port) = line.strip_prefix("listening on port ") {
                break port.parse().unwrap();
            }
            printed.push(line);
        };
        (Self { child, lines, port }, printed)
    }

    /// Waits for the next line that the server prints. The test fails if none comes within 60 s.
    #[track_caller]
    pub fn line(&mut self) -> String {
        self.lines.expect("a line")
    }

    /// Connects to the server.
    pub fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).unwrap()
    }

    /// Sends a signal to the server.
    pub fn signal(&self, signal: i32) {
        kill(self.child.id().try_into().unwrap(), signal);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
