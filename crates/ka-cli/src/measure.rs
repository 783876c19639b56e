//! `ka measure`: measures the idle time that the path to a server survives ([`ka_reach::measure`]), and prints the
//! policy for it.

use std::io::{self, BufWriter, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use ka_core::{Config, plan_path};
use ka_reach::escape::visible;
use ka_reach::measure::{
    self, Conclusion, Doubt, IdleTimes, MeasureRequest, Measured, Measurement, Notice, Sample, ServeNotice,
    TrialResult,
};
use ka_reach::signal;
use serde::Serialize;

use crate::args;
use crate::duration::words;
use crate::failure::{CommandResult, FOUND, Failure, warn};
use crate::json;
use crate::plural;
use crate::progress_line::ProgressLine;
use crate::shell::quoted;
use crate::via;

/// The default of --precision.
const PRECISION: Duration = Duration::from_secs(5);
/// The bounds of the idle times. The kernel accepts idle times of keepalive from 1 s to a little more than 9 h.
const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(9 * 3600);
const LEAST_PRECISION: Duration = Duration::from_millis(500);
/// The longest text of --send. It fits into the send buffer of a new connection.
const LONGEST_TEXT: usize = 4096;
/// The largest value of --connections.
const MOST_AT_A_TIME: usize = 200;

pub(crate) fn measure(args: &args::MeasureArgs) -> CommandResult {
    match (&args.serve, &args.server) {
        (Some(address), _) => serve(address, args.verbose),
        (None, Some(server)) => measure_path(server, args),
        (None, None) => Err(Failure::new("measure: HOST:PORT is missing")),
    }
}

/// HOST:PORT on the command line.
#[derive(Clone, Debug)]
pub(crate) struct MeasureTarget {
    text: String,
    host: String,
    port: u16,
}

/// [ADDR:]PORT on the command line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListeningAddress {
    address: Option<IpAddr>,
    port: u16,
}

/// The bytes that --send sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FirstBytes(Vec<u8>);

/// Parses HOST:PORT.
pub(crate) fn target(text: &str) -> Result<MeasureTarget, String> {
    let wrong = || "must be HOST:PORT, as db.example.net:5432, 192.0.2.7:443 or [2001:db8::7]:22".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => {
            let (address, zone) =
                host.split_once('%').map_or((host, None), |(address, zone)| (address, Some(zone)));
            let address: Ipv6Addr = address.parse().map_err(|_| wrong())?;
            if address.is_unicast_link_local() && zone.is_none_or(str::is_empty) {
                return Err("a link-local address needs an interface, as [fe80::7%eth0]:22".to_owned());
            }
            host
        }
        None if host.is_empty() || host.contains([':', '[', ']']) => return Err(wrong()),
        None => host,
    };
    Ok(MeasureTarget { text: text.to_owned(), host: host.to_owned(), port: args::port(port)? })
}

/// Parses [ADDR:]PORT.
pub(crate) fn listening_address(text: &str) -> Result<ListeningAddress, String> {
    let wrong = || "must be PORT or ADDR:PORT, as 7007, 192.0.2.7:7007 or [::1]:7007".to_owned();
    let Some((address, port)) = text.rsplit_once(':') else {
        return Ok(ListeningAddress { address: None, port: args::port(text).map_err(|_| wrong())? });
    };
    let inner = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
    let address = match inner {
        Some(address) => address.parse::<Ipv6Addr>().map(IpAddr::V6),
        None => address.parse().map(IpAddr::V4),
    };
    Ok(ListeningAddress { address: Some(address.map_err(|_| wrong())?), port: args::port(port)? })
}

/// Parses the address of --bind.
pub(crate) fn local_address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "must be an address of this machine, as 192.0.2.7 or 2001:db8::7".to_owned())
}

/// Parses the number of connections at a time.
pub(crate) fn connections(text: &str) -> Result<usize, String> {
    let number = args::number(text).filter(|number| (1..=MOST_AT_A_TIME).contains(number));
    number.ok_or_else(|| format!("must be a number, 1..{MOST_AT_A_TIME}"))
}

/// Replaces the escapes in the text of --send.
pub(crate) fn unescaped(text: &str) -> Result<FirstBytes, String> {
    let mut bytes = Vec::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        bytes.push(match letters.next() {
            Some('r') => b'\r',
            Some('n') => b'\n',
            Some('t') => b'\t',
            Some('\\') => b'\\',
            Some('x') => {
                let digits = [letters.next(), letters.next()].map(|digit| digit?.to_digit(16));
                let [Some(high), Some(low)] = digits else {
                    return Err("\\x needs two hexadecimal digits, as \\x1f".to_owned());
                };
                u8::try_from(16 * high + low).unwrap_or(u8::MAX)
            }
            _ => return Err("the escapes are \\r, \\n, \\t, \\\\ and \\xNN".to_owned()),
        });
    }
    match bytes.len() {
        0 => Err("must not be empty".to_owned()),
        1..=LONGEST_TEXT => Ok(FirstBytes(bytes)),
        _ => Err(format!("must be at most {LONGEST_TEXT} bytes")),
    }
}

/// Checks the idle times.
fn range(args: &args::MeasureArgs) -> Result<IdleTimes, Failure> {
    let milliseconds = |value: u32| Duration::from_millis(value.into());
    let (from, to) = (milliseconds(args.from), milliseconds(args.to));
    let fail = |message: String| Err(Failure::new(format_args!("measure: {message}")));
    let time = |time: Duration| words(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    if from < LEAST {
        return fail(format!(
            "--from {}: must be 1 s or more, because the kernel sends no probe after a shorter \
             idle time",
            time(from)
        ));
    }
    if to > MOST {
        return fail(format!(
            "--to {}: must be 9 h or less, because keepalive has no longer idle time",
            time(to)
        ));
    }
    if from > to {
        return fail(format!("--from {} is longer than --to {}", time(from), time(to)));
    }
    let gap = to.saturating_sub(from);
    let precision = match args.precision.map(milliseconds) {
        None => PRECISION.min(gap / 2).max(LEAST_PRECISION),
        Some(precision) if precision < LEAST_PRECISION => {
            return fail(format!("--precision {}: must be 500 ms or more", time(precision)));
        }
        Some(precision) if precision > gap && !gap.is_zero() => {
            return fail(format!(
                "--precision {}: must be at most {}, the time between --from and --to",
                time(precision),
                time(gap)
            ));
        }
        Some(precision) => precision,
    };
    Ok(IdleTimes { from, to, precision })
}

fn measure_path(server: &MeasureTarget, args: &args::MeasureArgs) -> CommandResult {
    let range = range(args)?;
    let failed = |error: ka_reach::Error| Failure::new(format_args!("measure: {error}"));
    let only_v6 = match (args.ipv4, args.ipv6) {
        (true, _) => Some(false),
        (_, true) => Some(true),
        _ => None,
    };
    if let (Some(bind), Some(v6)) = (args.bind, only_v6)
        && bind.is_ipv6() != v6
    {
        let flag = if v6 { "-6" } else { "-4" };
        return Err(Failure::new(format_args!("measure: --bind {bind} is not an address for {flag}")));
    }
    let request = MeasureRequest {
        addresses: measure::resolve(&server.host, server.port, only_v6, args.bind).map_err(failed)?,
        range,
        connections: args.connections,
        text: args.send.as_ref().map(|send| send.0.clone()).unwrap_or_default(),
        bind: args.bind,
        from_server: args.from_server,
    };
    let termination = signal::termination().map_err(|error| failed(error.into()))?;
    let mut progress = ProgressDisplay::new(server, args);
    let result = measure::measure(&request, termination.as_fd(), &mut |notice| progress.show(notice));
    progress.progress.clear();
    let measurement = result.map_err(failed)?;
    let status = match measurement.conclusion {
        Conclusion::Keeps | Conclusion::Forgets(_) => 0,
        Conclusion::ServerCloses | Conclusion::Unclear(_) => FOUND,
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        json::to_writer_pretty(&mut out, &MeasurementJson::new(server, &measurement))?;
        writeln!(out)?;
    } else {
        Findings { server, args, measurement: &measurement }.write(&mut out)?;
    }
    out.flush()?;
    Ok(status)
}

/// Messages on standard error while a measurement runs.
struct ProgressDisplay<'a> {
    server: &'a MeasureTarget,
    /// True if each trial has a line.
    is_verbose: bool,
    progress: ProgressLine,
}

impl<'a> ProgressDisplay<'a> {
    fn new(server: &'a MeasureTarget, args: &args::MeasureArgs) -> Self {
        let progress = ProgressLine::new();
        Self { server, is_verbose: args.verbose || !progress.is_shown(), progress }
    }

    fn show(&mut self, notice: Notice<'_>) {
        match notice {
            Notice::Connected(address) => {
                self.line(&format!(
                    "measuring the path to {} ({address})",
                    visible(self.server.text.as_bytes())
                ));
            }
            Notice::Trial(sample) if self.is_verbose => self.line(&trial_line(sample)),
            Notice::Fewer(most, why) => self.line(&fewer(most, why)),
            Notice::Progress { elapsed, remaining, connections } => {
                let time = |time: Duration| words(1000 * time.as_secs());
                let open = plural::count(connections, "connection");
                let (elapsed, remaining) = (time(elapsed), time(remaining));
                self.progress.show(&format!("{elapsed} elapsed, about {remaining} left, {open} open"));
            }
            Notice::Trial(_) => {}
        }
    }

    fn line(&mut self, text: &str) {
        self.progress.clear();
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// Describes a trial.
fn trial_line(sample: &Sample) -> String {
    let after = sample.after.map(|after| format!(" after {} ms", after.as_millis()));
    let after = after.as_deref();
    let how = match sample.result {
        TrialResult::Answered => after.unwrap_or(": the server sent a packet by itself"),
        TrialResult::Silent => ": no probe was answered",
        TrialResult::Reset => after.unwrap_or(" without a probe"),
        TrialResult::Closed => " by the server",
    };
    format!("idle {}: {}{how}", exact(sample.idle), sample.result.name())
}

fn fewer(most: usize, why: &str) -> String {
    format!("the server accepts only {} at a time: {why}", plural::count(most, "connection"))
}

/// Formats a time with the precision that matters.
fn exact(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// A measurement in JSON.
#[derive(Serialize)]
struct MeasurementJson<'a> {
    target: &'a str,
    address: String,
    verdict: &'static str,
    how: Option<TrialResult>,
    survives_s: Option<f64>,
    fails_s: Option<f64>,
    server_closed_s: Option<f64>,
    policy: Option<PolicyJson>,
    took_s: f64,
    trials: Vec<TrialJson>,
}

#[derive(Serialize)]
struct PolicyJson {
    idle: i32,
    intvl: i32,
    cnt: i32,
}

#[derive(Serialize)]
struct TrialJson {
    idle_s: f64,
    result: TrialResult,
    after_ms: Option<u64>,
}

impl<'a> MeasurementJson<'a> {
    fn new(server: &'a MeasureTarget, measurement: &Measurement) -> Self {
        let Measurement { address, conclusion, measured, samples, took, .. } = measurement;
        let trial = |sample: &Sample| TrialJson {
            idle_s: seconds(sample.idle),
            result: sample.result,
            after_ms: sample.after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
        };
        Self {
            target: &server.text,
            address: address.to_string(),
            verdict: conclusion.name(),
            how: if let Conclusion::Forgets(how) = conclusion { Some(*how) } else { None },
            survives_s: measured.survives.map(seconds),
            fails_s: measured.fails.map(seconds),
            server_closed_s: measured.server_closed.map(seconds),
            policy: policy(measured).map(|[idle, intvl, cnt]| PolicyJson { idle, intvl, cnt }),
            took_s: seconds(*took),
            trials: samples.iter().map(trial).collect(),
        }
    }
}

/// Returns a time in seconds, rounded to milliseconds.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

/// Returns the longest idle time that a connection survived, in whole seconds.
fn path_idle_s(measured: &Measured) -> Option<u32> {
    measured.survives.map(|survives| u32::try_from(survives.as_secs()).unwrap_or(u32::MAX))
}

/// Returns idle, intvl and cnt of the policy for the longest idle time that a connection survived. Returns `None` if no
/// policy is short enough.
fn policy(measured: &Measured) -> Option<[i32; 3]> {
    let config: Config = plan_path(path_idle_s(measured)?).ok()?;
    Some([config.idle()?, config.intvl()?, config.cnt()?])
}

/// The output for people.
struct Findings<'a> {
    server: &'a MeasureTarget,
    args: &'a args::MeasureArgs,
    measurement: &'a Measurement,
}

impl Findings<'_> {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let Measurement { address, conclusion, measured, samples, took, fewer: few } = self.measurement;
        let prober = if self.args.from_server { ", probes from the server" } else { "" };
        writeln!(
            out,
            "{} ({address}{prober}): {} in {}",
            visible(self.server.text.as_bytes()),
            plural::count(samples.len(), "connection"),
            words(u64::try_from(took.as_millis()).unwrap_or(u64::MAX))
        )?;
        let how = if let Conclusion::Forgets(how) = conclusion {
            format!(", {}", how.name())
        } else {
            String::new()
        };
        writeln!(out, "Verdict: {}{how}", conclusion.name())?;
        for (what, time) in [
            ("longest idle time survived", measured.survives),
            ("shortest idle time not survived", measured.fails),
            ("the server closed connections after", measured.server_closed),
        ] {
            if let Some(time) = time {
                writeln!(out, "  {what}: {}", exact(time))?;
            }
        }
        writeln!(out, "\n{}", self.reason())?;
        if let Some((most, why)) = few {
            writeln!(out, "Note: {}.", fewer(*most, why))?;
        }
        writeln!(out, "\nNot visible in this measurement:")?;
        for sentence in self.limits() {
            writeln!(out, "- {sentence}")?;
        }
        match (policy(measured), measured.survives) {
            (Some(policy), _) => self.write_policy(out, policy),
            (None, Some(survives)) => writeln!(
                out,
                "\nNo policy of keepalive is short enough for {}. The program itself must send something more often.",
                exact(survives)
            ),
            (None, None) if matches!(conclusion, Conclusion::Forgets(_)) => {
                writeln!(out, "\nNo connection survived. Measure again with a shorter --from.")
            }
            (None, None) => Ok(()),
        }
    }

    /// Explains the verdict: the device or program that ends connections, as far as the results show it.
    fn reason(&self) -> String {
        let Measurement { conclusion, measured, samples, .. } = self.measurement;
        match conclusion {
            Conclusion::Keeps => format!(
                "No timeout of the path up to {} was found.",
                exact(measured.survives.unwrap_or_default())
            ),
            Conclusion::Forgets(TrialResult::Reset) if measured.is_unasked => {
                "The connections were reset (RST) without a probe, each after the same idle time. This is an idle \
                 timeout, either of a middlebox that resets, or of the server. Keepalive prevents it only if a \
                 middlebox does it: look for such a timeout in the configuration of the server."
                    .to_owned()
            }
            Conclusion::Forgets(TrialResult::Reset) if self.args.from_server => {
                "The probe of the server was answered with a reset (RST). A NAT or another middlebox on the path has \
                 forgotten the connection."
                    .to_owned()
            }
            Conclusion::Forgets(TrialResult::Reset) => {
                "The probe was answered with a reset (RST). A middlebox on the path, such as a load balancer, has \
                 forgotten the connection and resets it. A server that was restarted meanwhile does the same."
                    .to_owned()
            }
            Conclusion::Forgets(_) => {
                "The probes got neither an answer nor an error. A NAT or a firewall on the path has forgotten the \
                 connection, and drops its packets."
                    .to_owned()
            }
            Conclusion::ServerCloses if measured.survives.is_none() => {
                let is_reset = samples.iter().any(|sample| sample.result == TrialResult::Reset);
                format!(
                    "The server, or a proxy in front of it, ends each connection at once ({}). If the server waits \
                     for a request, try --send. The server may also reject your address. To measure the path without \
                     this server, run ka measure --serve PORT on its machine.",
                    if is_reset { "RST" } else { "FIN" }
                )
            }
            Conclusion::ServerCloses => {
                "The server, or a proxy in front of it, closes idle connections (FIN). Keepalive does not prevent \
                 this: change its timeout, or let the program send something more often. The path itself survives at \
                 least as long. If the server only closes clients that send nothing, try --send. To measure the path \
                 without this server, run ka measure --serve PORT on its machine."
                    .to_owned()
            }
            Conclusion::Unclear(Doubt::Interrupted) => {
                "A signal ended the measurement. These are the results so far.".to_owned()
            }
            Conclusion::Unclear(Doubt::Contradiction) => {
                "Longer idle times survived and shorter ones did not, also when they were repeated. The connections \
                 probably take different paths: several NATs or links side by side (ECMP), several servers behind one \
                 address (anycast, DNS or a load balancer), or a server that was restarted. The numbers above are \
                 those of the path that forgets first. Measure one server by its own address, or measure again."
                    .to_owned()
            }
            Conclusion::Unclear(Doubt::PeerTalks) => {
                "The server sends packets by itself, such as keepalive probes of its own, so no connection was idle \
                 for longer. These packets also keep the path open. To measure longer times, turn them off at the \
                 server, or run ka measure --serve PORT on its machine."
                    .to_owned()
            }
            Conclusion::Unclear(Doubt::ServerGone) => {
                "The server no longer accepts connections, or no longer answers. These are the results so far."
                    .to_owned()
            }
        }
    }

    /// Returns sentences about the limits of the measurement.
    fn limits(&self) -> Vec<&'static str> {
        let mut limits = vec![
            "A proxy that ends TCP, such as an HTTP load balancer, answers the probes itself. The path behind it was \
             not measured.",
        ];
        if self.args.from_server {
            limits.push(
                "The probes came from the server. A timeout that only affects packets from here was not measured: \
                 measure without --from-server.",
            );
        } else if self.measurement.conclusion == Conclusion::Keeps {
            limits.push(
                "A NAT can forget a connection, and accept the probe of the client as a new connection (loose pick-up, \
                 the default of Linux). This measurement does not find such a NAT, which drops data that the server \
                 sends first. To find it, run ka measure --serve PORT on the server's machine, and ka measure \
                 --from-server HOST:PORT here.",
            );
        }
        limits
    }

    /// Writes the policy, and the lines that apply it.
    fn write_policy(&self, out: &mut impl Write, [idle, intvl, cnt]: [i32; 3]) -> io::Result<()> {
        let path = path_idle_s(&self.measurement.measured).unwrap_or_default();
        let purpose = match self.measurement.conclusion {
            Conclusion::Keeps => "Policy that keeps the path open at the idle time that was measured",
            Conclusion::ServerCloses => {
                "Policy that keeps the path open, but does not keep the server from closing"
            }
            Conclusion::Unclear(_) => "Policy for the longest idle time that a connection survived",
            Conclusion::Forgets(_) => "Policy that keeps the path open",
        };
        writeln!(out, "\n{purpose}: {idle},{intvl},{cnt}")?;
        for (what, text) in [
            ("details", format!("ka plan --path {path}s")),
            ("a program", format!("ka run -d {idle} -i {intvl} -c {cnt} -- PROGRAM")),
            ("C, with libka", format!("ka_enable(fd, {idle}, {intvl}, {cnt});")),
            (
                "a systemd unit, or any environment",
                via::shim_path().map_or_else(
                    |why| format!("# {why}"),
                    |shim| {
                        let shim = quoted(shim.as_os_str());
                        format!("Environment=LD_PRELOAD={shim}\nEnvironment=KA_POLICY={idle},{intvl},{cnt}")
                    },
                ),
            ),
        ] {
            writeln!(out, "\n{what}:")?;
            for line in text.lines() {
                writeln!(out, "    {line}")?;
            }
        }
        Ok(())
    }
}

/// Runs the other end of a measurement until a signal comes.
fn serve(listening: &ListeningAddress, verbose: bool) -> CommandResult {
    let failed = |error: ka_reach::Error| Failure::new(format_args!("measure: --serve: {error}"));
    let listeners = measure::listen(listening.address, listening.port).map_err(failed)?;
    let termination = signal::termination().map_err(|error| failed(error.into()))?;
    let mut out = io::stdout();
    let addresses = listeners.iter().map(|listener| listener.local_addr().map(|address| address.to_string()));
    let addresses: Vec<_> = addresses.collect::<io::Result<_>>()?;
    writeln!(
        out,
        "listening on {}, keeping at most {}, until SIGINT or SIGTERM",
        addresses.join(" and "),
        plural::count(measure::capacity(), "connection")
    )?;
    out.flush()?;
    let mut warnings = Warnings { next: Instant::now(), left_out: 0 };
    measure::serve(&listeners, termination.as_fd(), &mut |notice| match notice {
        ServeNotice::Replaced(peer) => {
            warnings.print(peer, "closed, because a newer connection needs its place");
        }
        ServeNotice::Unusable(peer, why) => warnings.print(peer, why),
        ServeNotice::Connections(count) if verbose => {
            let _ = writeln!(io::stderr(), "{}", plural::count(count, "connection"));
        }
        ServeNotice::Connections(_) => {}
    })
    .map_err(failed)?;
    Ok(0)
}

/// The warnings of the server: at most one line per second, because any client can cause them.
struct Warnings {
    /// The time from which the next warning is printed.
    next: Instant,
    /// The number of warnings that were left out since the last line.
    left_out: usize,
}

impl Warnings {
    fn print(&mut self, peer: SocketAddr, text: &str) {
        let now = Instant::now();
        if now < self.next {
            self.left_out += 1;
            return;
        }
        let more = match std::mem::take(&mut self.left_out) {
            0 => String::new(),
            left_out => format!(" ({} before this one left out)", plural::count(left_out, "warning")),
        };
        warn(format_args!("measure: {peer}: {text}{more}"));
        self.next = now + Duration::from_secs(1);
    }
}

#[cfg(test)]
mod tests {
    use super::{FirstBytes, listening_address, target, unescaped};

    #[test]
    fn hosts_and_ports_are_parsed() {
        for (text, host, port) in [
            ("db.example.net:5432", "db.example.net", 5432),
            ("192.0.2.7:1", "192.0.2.7", 1),
            ("[::1]:65535", "::1", 65535),
            ("[fe80::7%eth0]:22", "fe80::7%eth0", 22),
        ] {
            let target = target(text).unwrap();
            assert_eq!((target.host.as_str(), target.port), (host, port), "{text}");
        }
        for text in [
            "",
            ":",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:+80",
            ":80",
            "::1:80",
            "[::1]",
            "[::1",
            "[host]:80",
            "[]:1",
            "[fe80::7]:22",
            "[fe80::7%]:22",
            "[%eth0]:22",
        ] {
            assert!(target(text).is_err(), "{text}");
        }
    }

    #[test]
    fn listening_addresses_are_parsed() {
        let address = |text: &str| listening_address(text).unwrap();
        assert_eq!((address("7007").address, address("7007").port), (None, 7007));
        assert_eq!(address("192.0.2.7:80").address, Some([192, 0, 2, 7].into()));
        assert_eq!(address("[::1]:80").address.map(|address| address.is_ipv6()), Some(true));
        for text in
            ["", "0", "+80", "[::1]:+80", "port", "host:80", "::1:80", "[192.0.2.7]:80", ":80", "1:2:3"]
        {
            assert!(listening_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn escapes_are_replaced() {
        let sent = |text: &str| unescaped(text).map(|FirstBytes(bytes)| bytes);
        assert_eq!(sent("a\\r\\n\\t\\\\\\x00\\xfFé").unwrap(), b"a\r\n\t\\\0\xff\xc3\xa9");
        for text in ["", "\\", "\\q", "\\x", "\\x1", "\\x1g", "\\x+1", &"x".repeat(4097)] {
            assert!(sent(text).is_err(), "{text}");
        }
    }
}
