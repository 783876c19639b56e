//! `ka top`: a live view of TCP sockets.
//!
//! The program ka-top draws the view, because code for terminals would make the start of each `ka run` slower
//! (docs/performance.md). `ka` checks the arguments and becomes ka-top. ka-top checks that it has the version of `ka`,
//! and reads the same arguments again, by [`run_view`]. For the view, this module also probes the selected socket, and
//! applies the policy to it.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use ka_core::Config;
use ka_policy::Mode;
use ka_reach::attach::{Attach, Change, NamedProcess, Processes, Report};
use ka_reach::brief;
use ka_reach::diag::State;
use ka_reach::listing::{ListedSocket, Listing, Selection, SocketOwner, sockets};
use ka_reach::netns;
use ka_reach::ping::{Destroy, Ping, PingRequest};
use ka_reach::reason::reason;
use ka_reach::version::{self, VERSION};
use ka_reach::wait;
use ka_reach::watch::{Namespaces, Watch, WatchEvent, WatchFilter};
use ka_reach::worker::Workers;

use crate::args::{self, Command, TopArgs};
use crate::attach::{arrow, socket_line};
use crate::environment::Environment;
use crate::failure::{CommandResult, Failure};
use crate::policy_sources::{self, Chosen};
use crate::timestamp::rfc3339;
use crate::{installed, ping, policy_flags, start, watch};

/// The program that draws the view.
const VIEW: &str = "ka-top";

/// Becomes the program that draws the view.
pub(crate) fn top(args: &TopArgs) -> CommandResult {
    check(args)?;
    let failure = |why: &str| {
        Failure::new(format_args!(
            "top: {why}. {VIEW} is a part of ka: install ka again, by its package or `make install`. ka ls prints \
             the list without it"
        ))
    };
    let places = installed::candidates(VIEW);
    let path = installed::first(VIEW, &places).map_err(|why| failure(&why))?;
    let mut words = vec![path.as_os_str().to_owned(), VERSION.into()];
    words.extend(env::args_os().skip(2));
    let error = start::exec(path, &words, &Environment::of_this_process().0);
    Err(failure(&format!("{}: {}", path.display(), reason(&error))))
}

/// Checks that the view can be shown: both standard streams are a terminal that can move its cursor.
fn check(args: &TopArgs) -> Result<(), Failure> {
    let streams = [("input", io::stdin().is_terminal()), ("output", io::stdout().is_terminal())];
    if let Some((stream, _)) = streams.into_iter().find(|(_, is_terminal)| !is_terminal) {
        return Err(Failure::new(format_args!(
            "top: standard {stream} is not a terminal; to print the sockets once, use {}",
            list_command(args)
        )));
    }
    let term = env::var_os("TERM").unwrap_or_default();
    if term.is_empty() || term == "dumb" {
        return Err(Failure::new(format_args!(
            "top: TERM=\"{}\": this terminal cannot show a live view; to print the sockets once, use {}",
            ka_reach::escape::visible(term.as_bytes()),
            list_command(args)
        )));
    }
    Ok(())
}

/// Returns the ka ls command that lists the same sockets.
fn list_command(args: &TopArgs) -> String {
    let port = args.port.map(|port| format!("--port {port}"));
    let words = ["ka ls".to_owned()].into_iter().chain(port).chain(args.pids.iter().map(i32::to_string));
    words.collect::<Vec<_>>().join(" ")
}

/// The arguments of `ka top`.
pub struct ViewRequest {
    /// Only the sockets of these processes. If empty, of all processes.
    pub pids: Vec<i32>,
    /// Only sockets whose local or peer port is this one.
    pub port: Option<u16>,
    /// The time between two refreshes.
    pub interval: Duration,
    /// The policy to apply to a selected socket, or the reason why there is none.
    pub policy: Result<(Config, Mode), String>,
}

/// Runs `show` with the arguments of ka-top: the version of `ka`, and the arguments of `ka top`. Prints the message of
/// a failure. Returns the exit status.
pub fn run_view(
    arguments: impl IntoIterator<Item = OsString>,
    show: impl FnOnce(ViewRequest) -> Result<(), String>,
) -> i32 {
    start::open_standard_descriptors();
    let mut arguments = arguments.into_iter().skip(1);
    if let Err(why) = version::check(arguments.next().as_deref(), VIEW, "ka top") {
        return crate::end(Err(Failure::new(format_args!("top: {why}"))));
    }
    let words = ["ka", "top"].map(OsString::from).into_iter().chain(arguments);
    let args = match args::parse(words.collect()) {
        Ok(args::Ka { command: Command::Top(args) }) => args,
        Ok(_) => return crate::failure::USAGE,
        Err(error) if error.use_stderr() => {
            let _ = error.print();
            return crate::failure::USAGE;
        }
        Err(help) => return crate::end(crate::print(&help)),
    };
    let shown = check(&args).and_then(|()| view_request(&args)).and_then(|request| {
        show(request).map(|()| 0).map_err(|why| Failure::new(format_args!("top: {why}")))
    });
    crate::end(shown)
}

fn view_request(args: &TopArgs) -> Result<ViewRequest, Failure> {
    let chosen = policy_sources::choose("top", &args.policy, args.mode);
    let policy = match chosen {
        Ok(Chosen { policy, mode, .. }) => {
            policy_flags::check_effect(&policy, mode)?;
            Ok((policy, mode))
        }
        // Without a policy, the view can still show the sockets.
        Err(failure) if !args.policy.is_named() => Err(failure.message),
        Err(failure) => return Err(failure),
    };
    Ok(ViewRequest {
        pids: args.pids.clone(),
        port: args.port,
        interval: Duration::from_millis(args.interval.into()),
        policy,
    })
}

impl ViewRequest {
    /// Lists the sockets. This process must have one thread, and may be in another network namespace afterwards.
    ///
    /// # Errors
    ///
    /// Nothing could be listed.
    pub fn list(&self, workers: &mut Workers) -> ka_reach::Result<Listing> {
        let namespaces = netns::to_list(&self.pids);
        let selection = Selection { pids: &self.pids, port: self.port, namespaces: &namespaces };
        sockets(workers, &State::with_options().collect::<Vec<_>>(), Some(&selection))
    }
}

/// The abnormal ends of connections, for the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchMessage {
    /// A connection ended abnormally.
    Died(String),
    /// The ends that the view misses.
    Limits(String),
}

impl WatchMessage {
    /// Writes a line.
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let (mark, text) = match self {
            Self::Died(text) => ('+', text),
            Self::Limits(text) => ('-', text),
        };
        writeln!(out, "{mark}{}", ka_reach::escape::visible(text.as_bytes()))
    }

    /// Reads a line without its end.
    pub fn read(line: &str) -> Option<Self> {
        let text = |text: &str| text.to_owned();
        line.strip_prefix('+')
            .map(text)
            .map(Self::Died)
            .or(line.strip_prefix('-').map(text).map(Self::Limits))
    }
}

impl ViewRequest {
    /// Watches connections as `ka watch` does, and writes lines for [`WatchMessage::read`]. Ends when `out` is closed
    /// at its other end. This process must have one thread.
    ///
    /// # Errors
    ///
    /// The errno of a write.
    pub fn watch(&self, out: &mut (impl Write + AsFd)) -> io::Result<()> {
        let namespaces = Namespaces::Some(netns::of(&self.pids).0);
        let filter = WatchFilter { namespaces, pids: self.pids.clone(), port: self.port };
        let mut watch = match Watch::start(filter, None) {
            Ok(watch) => watch,
            Err(error) => return WatchMessage::Limits(error.to_string()).write(out),
        };
        if let Some(limits) = watch::limits(&watch) {
            WatchMessage::Limits(limits).write(out)?;
        }
        let mut missed = 0;
        loop {
            let events = match watch.wait(&[out.as_fd()], Duration::from_secs(60)) {
                Ok(events) => events,
                Err(error) => return WatchMessage::Limits(error.to_string()).write(out),
            };
            for event in events {
                match event {
                    WatchEvent::Died(death) => {
                        let time = rfc3339(death.time);
                        let time = time.split_once('T').map_or(&*time, |(_, time)| time);
                        WatchMessage::Died(format!("{time} {}", watch::sentence(&death))).write(out)?;
                    }
                    WatchEvent::Missed(count) | WatchEvent::Unclear(count) => {
                        missed += count;
                        let ends = crate::plural::count(missed, "end");
                        WatchMessage::Limits(format!("{ends} not shown: ka watch prints the reason"))
                            .write(out)?;
                    }
                    WatchEvent::Incomplete(error) => WatchMessage::Limits(error.to_string()).write(out)?,
                }
            }
            // The view writes nothing, so the stream is readable when it is closed.
            if wait::poll(&[out.as_fd()], Duration::ZERO)? == [true] {
                return Ok(());
            }
        }
    }
}

/// Returns the process that has a socket, or the reason why ka cannot reach the socket.
fn owner(socket: &ListedSocket) -> Result<&SocketOwner, String> {
    socket.owner.as_ref().ok_or_else(|| {
        let why = match socket.entry.inode {
            0 => "no process has this socket: no process has accepted it yet, or all have closed it",
            _ => "the process of this socket is unknown: run ka as root (needs CAP_SYS_PTRACE)",
        };
        why.to_owned()
    })
}

/// A probe of one connection, as `ka ping` makes it.
#[derive(Debug, PartialEq, Eq)]
pub struct SocketProbe {
    pid: i32,
    inode: u32,
}

impl SocketProbe {
    /// The time that the peer has to answer, and the number of probes: the defaults of `ka ping`.
    const TIMEOUT: Duration = Duration::from_secs(2);
    const COUNT: u32 = 3;

    /// Prepares a probe of a socket.
    ///
    /// # Errors
    ///
    /// The reason why ka cannot probe the socket.
    pub fn prepare(socket: &ListedSocket) -> Result<Self, String> {
        if socket.entry.peer.is_none() {
            return Err("this socket is not a connection, so ka cannot probe it".to_owned());
        }
        Ok(Self { pid: owner(socket)?.pid, inode: socket.entry.inode })
    }

    /// Probes the connection. Returns the result in one word, and in a sentence. This process must have one thread.
    pub fn ask(&self) -> (String, String) {
        let mut report = Report::default();
        let named = NamedProcess::open_all([self.pid], false, &mut report);
        let request = PingRequest { timeout: Self::TIMEOUT, count: Self::COUNT, destroy: Destroy::Never };
        let mut ping = Ping::new(request, Processes::Named(named), report);
        ping.inode = Some(self.inode);
        let skipped = |why: String| ("skipped".to_owned(), format!("skipped: {why}"));
        if let Err(error) = ping.run(|_| {}) {
            return skipped(error.to_string());
        }
        let failure = ping.report.results.first().and_then(|result| result.error.as_ref());
        match (ping.connections.first(), failure) {
            (Some(connection), _) => ping::describe(connection, Self::TIMEOUT),
            (None, Some(error)) => skipped(error.to_string()),
            (None, None) => skipped("the process has closed the socket".to_owned()),
        }
    }
}

/// A policy to apply to one socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    policy: Config,
    mode: Mode,
    pid: i32,
    inode: u32,
    /// The lines of the question to the user.
    pub question: Vec<String>,
}

impl Application {
    /// Prepares the application of a policy to one of these sockets.
    ///
    /// # Errors
    ///
    /// The reason why ka cannot set the socket.
    pub fn prepare(
        policy: &Result<(Config, Mode), String>,
        socket: &ListedSocket,
        all: &[ListedSocket],
    ) -> Result<Self, String> {
        let (policy, mode) = policy.clone()?;
        let SocketOwner { pid, fd, comm } = owner(socket)?;
        let entry = &socket.entry;
        let of_process = |other: &&ListedSocket| {
            other.owner.as_ref().is_some_and(|owner| owner.pid == *pid) || other.others.contains(pid)
        };
        let others = |port: u16| {
            let is_other = |other: &&ListedSocket| other.entry.inode != entry.inode;
            all.iter().filter(is_other).filter(of_process).filter(|other| other.entry.has_port(port)).count()
        };
        // Many connections of a process can share one of the two ports.
        let ports = [Some(entry.local.port()), entry.peer.map(|peer| peer.port())];
        let port = ports.into_iter().flatten().min_by_key(|port| others(*port)).unwrap_or(0);
        let text = brief::brief(&policy);
        let name = ka_reach::escape::visible(comm.as_deref().unwrap_or(b"?")).into_owned();
        let now = socket.settings.as_ref().map_or_else(|| "unknown".to_owned(), brief::brief_settings);
        let mut question = vec![
            format!("{name}/{pid} fd {fd}"),
            arrow(Some(entry.local), entry.peer),
            format!("now:     {now}"),
            format!("policy:  {text} (mode {})", mode.name()),
            format!("command: ka attach -p {text} --mode {} --port {port} {pid}", mode.name()),
        ];
        match others(port) {
            0 => {}
            1 => question.push("(the command would also set 1 other socket)".to_owned()),
            more => question.push(format!("(the command would also set {more} other sockets)")),
        }
        if !socket.others.is_empty() {
            let more = crate::plural::count(socket.others.len(), "other process");
            question.push(format!("(shared with {more}: they get the policy too)"));
        }
        Ok(Self { policy, mode, pid: *pid, inode: entry.inode, question })
    }

    /// Applies the policy. Returns the result in words. This process must have one thread.
    pub fn apply(&self) -> String {
        let change = Change {
            policy: self.policy,
            mode: self.mode,
            port: None,
            dry_run: false,
            describe: true,
            before: None,
        };
        let mut report = Report::default();
        let named = NamedProcess::open_all([self.pid], false, &mut report);
        let mut attach = Attach::new(change, Processes::Named(named), report);
        attach.inode = Some(self.inode);
        attach.set_once();
        match attach.report.results.first() {
            Some(result) if result.fd.is_some() => socket_line(result, false),
            Some(result) => result.error.as_ref().map_or_else(String::new, ToString::to_string),
            None => "the process has closed the socket".to_owned(),
        }
    }
}
