//! Runs a server with thousands of connections under the shim for a long time, while the lab injects network faults.
//! The server's memory, descriptors and CPU time must not grow. `make soak MINUTES=20`

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ka_test::child::{preloaded, stdout};
use ka_test::compiler::{Linkage, cc, compile};
use ka_test::path::{root, target};
use socket2::SockRef;

use super::many::{self, CONNECTIONS};
use crate::chart::{self, Line};
use crate::drift::{Drift, Verdict};
use crate::endpoint::{Policy, Program};
use crate::network::{Family, Network, PORT};
use crate::story::{Case, Needs, Story, sleep};

/// The duration in minutes. Without it, the soak does not run.
pub const MINUTES: &str = "KA_SOAK_MINUTES";
/// The folder for the report.
const REPORT: &str = "KA_SOAK_REPORT";
/// The leak of the server with each connection, fd or memory, to show that the soak detects it.
const LEAK: &str = "KA_SOAK_LEAK";

const CLIENTS: usize = 10;
const POLICY: Policy = Policy::new(4, 1, 2);
/// The middlebox on the path drops connections that are idle for longer.
const FORGETS: Duration = Duration::from_secs(10);
/// The faults repeat in rounds. The first rounds are not compared.
const WARM: usize = 3;
/// The faults in a round: the start and the end as fractions of the round, a name, and the router's rule.
const FAULTS: [(f64, f64, &str, &str); 3] = [
    (0.05, 0.2, "a fifth of all packets lost", "meta l4proto tcp numgen random mod 5 == 0 drop"),
    (
        0.3,
        0.75,
        "a sixteenth of all peers dead",
        "tcp sport & 0xf == 3 drop
         tcp dport & 0xf == 3 drop",
    ),
    (0.85, 0.9, "a sixteenth answered with RST", "tcp dport & 0xf == 5 reject with tcp reset"),
];

/// A measured quantity, with its unit, and the rise from the first round to the last that still counts as flat.
struct Series {
    label: &'static str,
    unit: &'static str,
    margin: fn(f64) -> f64,
    figures: Vec<f64>,
}

/// Returns the cases. The long one is included only if `MINUTES` is set.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![Case::new(
        "soak::rising_measurements_are_detected",
        "noise is flat, one descriptor in a hundred connections is not",
        rising_measurements_are_detected,
    )];
    if let Some(minutes) = std::env::var_os(MINUTES) {
        let minutes: f64 = minutes.to_string_lossy().parse().expect("MINUTES is a number");
        assert!(minutes >= 3.0, "MINUTES={minutes}: must be at least 3, for a few rounds");
        let should = format!("{CONNECTIONS} connections under the shim for {minutes} minutes: flat");
        cases = vec![
            Case::new("soak::memory_descriptors_and_cpu_stay_flat", should, move |story| run(story, minutes))
                .needs(Needs::Nothing),
        ];
    }
    cases
}

/// Tests twenty rounds of five thousand connections, with noise of a hundred. Then adds a leak of one in a hundred.
fn rising_measurements_are_detected(_: &mut Story) {
    let noise = |round: u32| f64::from(round * 7919 % 200) - 100.0;
    let figures = |leak: f64| -> Vec<f64> {
        (0..20).map(|round| 5000.0 + noise(round) + leak * f64::from(round) * 6000.0).collect()
    };
    assert_eq!(Drift::of(&figures(0.0)).verdict(100.0), Verdict::Flat);
    assert_eq!(Drift::of(&figures(0.01)).verdict(100.0), Verdict::Rises);
    assert_eq!(Drift::of(&figures(-0.01)).verdict(100.0), Verdict::Falls);
    let wild: Vec<f64> = (0..20).map(|round| 5000.0 + noise(round) * 40.0).collect();
    assert_eq!(Drift::of(&wild).verdict(1.0), Verdict::Noisy);
}

/// The actions of the clients.
#[derive(Default)]
struct Tally {
    made: AtomicU64,
    refused: AtomicU64,
    ended: AtomicU64,
    reset: AtomicU64,
    answered: AtomicU64,
    unanswered: AtomicU64,
}

fn run(story: &mut Story, minutes: f64) {
    let round = (minutes * 3.0).round().clamp(20.0, 60.0);
    assert_eq!(many::allowed(), CONNECTIONS, "the limit of open files is too low: see ulimit -Hn");
    let network = Network::with_nat(FORGETS);
    network.server.sysctl("core/somaxconn", 4096);
    let program = compile(&mut cc(), &root().join("tests/c/soak.c"), Linkage::Nothing);
    let mut command = preloaded(&program);
    let Policy { idle, intvl, cnt } = POLICY;
    command
        .env("KA_POLICY", format!("{idle},{intvl},{cnt}"))
        .arg(PORT.to_string())
        .args(std::env::var_os(LEAK));
    network.server.moves(&mut command);
    let mut server = Program::start(&mut command);
    assert!(server.line(&["listening"], 20.0).is_some(), "no server");

    let (tally, stop) = (Tally::default(), AtomicBool::new(false));
    let address = SocketAddr::new(network.host(Family::V4), PORT);
    let (series, marks, armed) = thread::scope(|scope| {
        let (network, tally) = (&network, &tally);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let stop = &stop;
                scope.spawn(move || network.client.within(|| churn(address, client, tally, stop)))
            })
            .collect();
        // Stop the clients even if this function panics.
        let stop = Stop(&stop);
        sleep(15.0);
        let (series, marks) = observe(network, server.pid(), minutes * 60.0, round);
        // Wait until the effects of the last fault are over, and no packet is in flight.
        drop(stop);
        let open: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        sleep(POLICY.seconds() + 4.0);
        let armed = timers(network);
        drop(open);
        (series, marks, armed)
    });
    server.tell("end");
    let (_, counts) = server.line(&["made"], 20.0).expect("the server has printed nothing");
    evaluate(story, &series, &marks, &Facts { minutes, round, server: counts, armed, tally: &tally });
}

type Marks = Vec<(f64, f64, &'static str)>;

/// Injects the faults, and measures the server each second. Returns the measurements and the faults.
fn observe(network: &Network, server: u32, seconds: f64, round: f64) -> ([Series; 4], Marks) {
    let (mut series, mut marks) = (series(), vec![]);
    let start = Instant::now();
    let mut fault = None;
    let mut before = cpu(server);
    let whole = (seconds / round).floor() * round;
    for second in (0_u32..).take_while(|second| f64::from(*second) < whole) {
        let due = start + Duration::from_secs(u64::from(second) + 1);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let at = f64::from(second);
        let into = at % round / round;
        let due = FAULTS.iter().position(|(from, until, ..)| (*from..*until).contains(&into));
        if due != fault {
            if fault.is_some() {
                network.stop_dropping();
            }
            if let Some((from, until, what, rule)) = due.map(|due| FAULTS[due]) {
                network.filters("loss", rule);
                marks.push((at, at + (until - from) * round, what));
            }
            fault = due;
        }
        let now = cpu(server);
        let figures = [memory(server), descriptors(server), (now - before) * 1000.0, sockets(server)];
        before = now;
        for (series, figure) in series.iter_mut().zip(figures) {
            series.figures.push(figure);
        }
    }
    (series, marks)
}

/// Ends the clients when dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn series() -> [Series; 4] {
    let new = |label, unit, margin: fn(f64) -> f64| Series { label, unit, margin, figures: vec![] };
    [
        new("private memory", "KiB", |_| 64.0),
        new("descriptors", "", |mean| mean / 50.0),
        new("CPU per second", "ms", |mean| mean / 2.0),
        new("TCP sockets", "", |mean| mean / 50.0),
    ]
}

/// Runs a client. It keeps its share of the connections, ends some by FIN and some by RST, and sends data on others.
fn churn(address: SocketAddr, number: usize, tally: &Tally, stop: &AtomicBool) -> Vec<Option<TcpStream>> {
    let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
    let connect = || {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok();
        count(if stream.is_some() { &tally.made } else { &tally.refused });
        stream
    };
    let mut open: Vec<Option<TcpStream>> = vec![];
    // xorshift, so that each run is the same.
    let mut random = 0x9e37_79b9_u64 + number as u64;
    while !stop.load(Ordering::Relaxed) {
        if open.len() < CONNECTIONS / CLIENTS {
            open.push(connect());
            thread::sleep(Duration::from_millis(15));
            continue;
        }
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let share = open.len();
        let slot = &mut open[usize::try_from(random >> 8).unwrap() % share];
        match (slot.take(), random % 8) {
            (Some(stream), 0) => {
                count(&tally.ended);
                drop(stream);
            }
            (Some(stream), 1) => {
                count(&tally.reset);
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            (Some(stream), _) if talks(&stream) => {
                count(&tally.answered);
                *slot = Some(stream);
            }
            (Some(_), _) => {
                count(&tally.unanswered);
            }
            (None, _) => {}
        }
        if slot.is_none() {
            *slot = connect();
        }
        thread::sleep(Duration::from_millis(20));
    }
    open
}

fn talks(mut stream: &TcpStream) -> bool {
    let mut data = [b'!'; 64];
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    stream.write_all(&data).is_ok() && stream.read_exact(&mut data).is_ok()
}

fn proc_file(pid: u32, name: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{name}"))
        .unwrap_or_else(|error| panic!("the server has ended: {error}"))
}

/// Returns the private memory of a process in KiB: proc_pid_smaps(5)
fn memory(pid: u32) -> f64 {
    let rollup = proc_file(pid, "smaps_rollup");
    let line = rollup.lines().find(|line| line.starts_with("Private_Dirty:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[expect(clippy::cast_precision_loss, reason = "thousands")]
fn descriptors(pid: u32) -> f64 {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as f64
}

/// Returns the CPU time of a process in seconds: the first word of schedstat, which is in nanoseconds.
fn cpu(pid: u32) -> f64 {
    let nanoseconds: f64 = proc_file(pid, "schedstat").split(' ').next().unwrap().parse().unwrap();
    nanoseconds / 1e9
}

/// Returns the number of TCP sockets that the kernel has allocated in the process's network, from a line such as
/// `TCP: inuse 5001 orphan 0 tw 0 alloc 5002 mem 0`.
fn sockets(pid: u32) -> f64 {
    let stat = proc_file(pid, "net/sockstat");
    let line = stat.lines().find(|line| line.starts_with("TCP:")).unwrap();
    let mut words = line.split(' ').skip_while(|word| *word != "inuse");
    words.nth(1).unwrap().parse().unwrap()
}

/// Returns how many of the server's connections have a running keepalive timer in ss(8), and how many are open.
fn timers(network: &Network) -> (usize, usize) {
    let output = stdout(network.server.command("ss").args(["-tnoH", "state", "established"]));
    let armed = output.lines().filter(|line| line.contains("timer:(keepalive,")).count();
    (armed, output.lines().count())
}

/// The facts in the report besides the measurements.
struct Facts<'a> {
    minutes: f64,
    round: f64,
    server: String,
    armed: (usize, usize),
    tally: &'a Tally,
}

fn evaluate(story: &mut Story, series: &[Series], marks: &[(f64, f64, &str)], facts: &Facts) {
    let mut table = String::from(
        "| | mean | change | noise (2 standard errors) | margin | result |\n|---|---|---|---|---|---|\n",
    );
    let mut wrong = vec![];
    for series in series {
        let drift = Drift::of(&means(&series.figures, facts.round));
        let margin = (series.margin)(drift.mean);
        let verdict = drift.verdict(margin);
        let unit = if series.unit.is_empty() { String::new() } else { format!(" {}", series.unit) };
        let _ = writeln!(
            table,
            "| {} | {:.1}{unit} | {:+.1}{unit} | {:.1} | {margin:.1} | {} |",
            series.label,
            drift.mean,
            drift.rise,
            drift.noise,
            verdict.name()
        );
        if verdict != Verdict::Flat {
            wrong.push(format!("{}: {} by {:.1}{unit}", series.label, verdict.name(), drift.rise));
        }
    }
    let text = text(facts, &table);
    println!("{text}");
    let folder = std::env::var_os(REPORT).map_or_else(|| target().to_owned(), PathBuf::from);
    let lines: Vec<Line> =
        series.iter().map(|Series { label, unit, figures, .. }| Line { label, unit, figures }).collect();
    fs::write(folder.join("soak.svg"), chart::draw(&lines, marks)).unwrap();
    fs::write(folder.join("soak.md"), text).unwrap();
    let (armed, open) = facts.armed;
    if armed * 100 < open * 99 || open * 10 < CONNECTIONS * 9 {
        wrong.push(format!("keepalive on {armed} of {open} connections, not on {CONNECTIONS}"));
    }
    story.saw(if wrong.is_empty() { "flat".to_owned() } else { wrong.join("; ") });
    assert!(wrong.is_empty(), "{}", wrong.join("; "));
}

/// Returns the mean of each whole round, without the first rounds.
fn means(figures: &[f64], round: f64) -> Vec<f64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "20 to 60")]
    let rounds = figures.chunks_exact(round as usize);
    rounds
        .skip(WARM)
        .map(|round| round.iter().sum::<f64>() / f64::from(u32::try_from(round.len()).unwrap()))
        .collect()
}

#[expect(clippy::cast_precision_loss, reason = "hundreds of thousands")]
fn text(facts: &Facts, table: &str) -> String {
    let Facts { minutes, round, server, armed: (armed, open), tally } = facts;
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let made = of(&tally.made) as f64;
    let date = stdout(Command::new("date").args(["-u", "+%Y-%m-%d"]));
    let kernel = ka_test::kernel::version();
    let connections = format!("{},{:03}", CONNECTIONS / 1000, CONNECTIONS % 1000);
    let load =
        fs::read_to_string("/proc/loadavg").unwrap().splitn(4, ' ').take(3).collect::<Vec<_>>().join(", ");
    let leak = std::env::var(LEAK)
        .map_or(String::new(), |what| format!(" **The server leaked on purpose: {what}.**"));
    format!(
        "# Soak

`make soak MINUTES={minutes}` ran a server with {connections} connections under the shim for {minutes} minutes, with the policy
{} (idle, interval and count). A middlebox on the path forgets connections that are idle for {} s. The same
network faults repeat every {round:.0} s. This run was on {}, on Linux {}.{leak}

![memory, descriptors, CPU and sockets over time](soak.svg)

{table}
The faults come in rounds. The column \"mean\" is the mean of all rounds except the first {WARM}. A straight line is
fitted to the means of these rounds (least squares). The column \"change\" is the rise of this line from the first
round to the last. A value is flat if it changes by no more than the margin. If it changes by more, the run fails, even
if the noise is larger than the change (\"too noisy to say\"). For memory and descriptors, the margin is {:.1} bytes and
{:.4} descriptors for each connection made. For CPU time, which depends on the other work of the machine, the margin is
half of the mean.

- The server, `tests/c/soak.c`, allocates no memory for a connection. If its memory grows, the cause is libka or the
  shim.
- The server counted its connections: {server}.
  \"dead\" means that keepalive ended the connection (ETIMEDOUT). Some of these peers were alive: one fault loses a fifth
  of all packets, and the count of the policy is only {} probes.
- The clients made {} connections. {} more attempts failed because of a fault. The clients ended {}
  connections by FIN and {} by RST. They got {} answers. They replaced {} connections on which
  no answer came within a second.
- At the end, without faults, ss shows a running keepalive timer on {armed} of the server's {open} connections.
- The server turns keepalive off on each connection that it accepts. The mode is force, the shim's default, so these
  calls have no effect.
- Load of the machine at the end (1, 5 and 15 minutes): {load}.
",
        POLICY.name(),
        FORGETS.as_secs(),
        date.trim(),
        kernel,
        64.0 * 1024.0 / made,
        CONNECTIONS as f64 / 50.0 / made,
        POLICY.cnt,
        of(&tally.made),
        of(&tally.refused),
        of(&tally.ended),
        of(&tally.reset),
        of(&tally.answered),
        of(&tally.unanswered),
    )
}
