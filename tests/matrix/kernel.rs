//! Reads the connections of this network from the kernel. ss(8) shows the running timer. getsockopt(2) on a duplicate
//! of each process's descriptor (pidfd_getfd(2)) returns the settings. This does not use ka.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;
use std::str::FromStr;

use ka_test::child::stdout;
use ka_test::process;
use ka_test::socket::{keepalive_options, option};

/// One end of an established connection.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// The name of a process that has the descriptor open.
    pub comm: String,
    local: SocketAddr,
    peer: SocketAddr,
    pub on: bool,
    /// idle, intvl, cnt
    pub values: [i32; 3],
    /// The timer in ss.
    timer: String,
}

impl End {
    pub fn has_port(&self, port: u16) -> bool {
        self.local.port() == port || self.peer.port() == port
    }

    /// Returns whether ss shows a running keepalive timer.
    pub fn is_armed(&self) -> bool {
        self.timer.starts_with("timer:(keepalive,")
    }

    pub fn is_server_of(&self, port: u16) -> bool {
        self.local.port() == port
    }
}

impl fmt::Display for End {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { comm, local, peer, on, values: [idle, intvl, cnt], timer } = self;
        write!(text, "{local} {peer} {on} {idle} {intvl} {cnt} {timer} {comm}")
    }
}

impl FromStr for End {
    type Err = Box<dyn Error>;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let [local, peer, on, idle, intvl, cnt, timer, comm] =
            line.splitn(8, ' ').collect::<Vec<_>>().try_into().map_err(|_| line)?;
        Ok(Self {
            comm: comm.to_owned(),
            local: local.parse()?,
            peer: peer.parse()?,
            on: on.parse()?,
            values: [idle.parse()?, intvl.parse()?, cnt.parse()?],
            timer: timer.to_owned(),
        })
    }
}

/// Returns all ends of established connections. Returns `None` if ss shows one that no process has accepted yet.
pub fn ends() -> Option<Vec<End>> {
    let timers = timers();
    let mut ends: Vec<End> = opened().into_values().collect();
    ends.retain_mut(|end| {
        let timer = timers.get(&(end.local.to_string(), end.peer.to_string()));
        timer.inspect(|timer| end.timer.clone_from(timer)).is_some()
    });
    ends.sort_by_key(|end| (end.local, end.peer));
    (ends.len() == timers.len()).then_some(ends)
}

/// Returns whether a process listens on a port.
pub fn is_listening(port: u16) -> bool {
    let sockets = stdout(Command::new("ss").args(["-tnlH", &format!("sport = :{port}")]));
    !sockets.is_empty()
}

/// Returns the timers in ss, by local and remote address.
fn timers() -> BTreeMap<(String, String), String> {
    let sockets = ka_test::socket::established("");
    let parse = |line: &str| {
        let mut words = line.split_whitespace().skip(2);
        let address = |word: Option<&str>| word.unwrap().to_owned();
        let (local, peer) = (address(words.next()), address(words.next()));
        ((local, peer), words.next().unwrap_or("none").to_owned())
    };
    sockets.lines().map(parse).collect()
}

/// Returns the established sockets that processes have open, by inode.
fn opened() -> BTreeMap<String, End> {
    let mut ends = BTreeMap::new();
    let entries = |path: String| fs::read_dir(path).into_iter().flatten().flatten();
    for folder in entries("/proc".to_owned()) {
        let Ok(pid) = folder.file_name().to_string_lossy().parse::<i32>() else { continue };
        let mut pidfd = None;
        for entry in entries(format!("/proc/{pid}/fd")) {
            let Ok(link) = fs::read_link(entry.path()) else { continue };
            let link = link.to_string_lossy().into_owned();
            if !link.starts_with("socket:") || ends.contains_key(&link) {
                continue;
            }
            let fd = entry.file_name().to_string_lossy().parse().unwrap();
            let Ok(pidfd) = pidfd.get_or_insert_with(|| process::open(pid)) else { break };
            let Ok(socket) = process::duplicate(pidfd, fd) else { continue };
            let comm = fs::read_to_string(folder.path().join("comm")).unwrap_or_default();
            if let Some(end) = established(socket, comm.trim()) {
                ends.insert(link, end);
            }
        }
    }
    ends
}

fn established(socket: OwnedFd, comm: &str) -> Option<End> {
    const ESTABLISHED: i32 = 1;
    let fd = socket.as_raw_fd();
    let state = option(fd, libc::IPPROTO_TCP, libc::TCP_INFO).ok()? & 0xff;
    if state != ESTABLISHED {
        return None;
    }
    let [on, idle, intvl, cnt, ..] = keepalive_options(fd);
    let socket = socket2::Socket::from(socket);
    Some(End {
        comm: comm.to_owned(),
        local: socket.local_addr().ok()?.as_socket()?,
        peer: socket.peer_addr().ok()?.as_socket()?,
        on: on.ok()? != 0,
        values: [idle.ok()?, intvl.ok()?, cnt.ok()?],
        timer: String::new(),
    })
}
