//! `ka plan`: computes a policy, and shows its effect and how to configure it in other software.

use std::env;
use std::io::{self, BufWriter, Write};

use ka_core::{
    Config, Detection, PRESETS, PlanError, Preset, Retransmission, RtoMax, Text, Timer, UserTimeout,
    plan_detect, plan_path,
};
use ka_policy::user_timeout_limit;
use serde::Serialize;

use crate::args;
use crate::duration::words;
use crate::failure::{CommandResult, Failure};
use crate::json;
use crate::presets;
use crate::shell::quoted;
use crate::sysctl;
use crate::table::{self, Cell, Column, Layout};
use crate::via;

/// The size of a probe and its answer, in bytes. Each packet has 20 bytes of IPv4 header, 20 of TCP header and 12 of
/// timestamps. IPv6 has 20 more.
const BYTES_PER_PROBE: f64 = 2.0 * 52.0;

pub(crate) fn plan(args: &args::PlanArgs) -> CommandResult {
    let mut out = BufWriter::new(io::stdout().lock());
    if args.list {
        list(&mut out, args.json)?;
    } else {
        let mut config = config(args)?;
        if let Some(rto_max) = args.rto_max {
            config = config
                .with_rto_max(rto_max)
                .map_err(|error| Failure::new(format_args!("plan: --rto-max: {error}")))?;
        }
        let plan = Plan::new(config, args.connections)?;
        if args.json {
            json::to_writer_pretty(&mut out, &plan)?;
            writeln!(out)?;
        } else {
            plan.write(&mut out)?;
        }
    }
    out.flush()?;
    Ok(0)
}

/// Returns the requested policy, with all its values.
fn config(args: &args::PlanArgs) -> Result<Config, Failure> {
    let too_short = |flag: &str, unit: &str, error: PlanError| {
        Failure::new(format_args!("plan: --{flag}: {error} {unit}"))
    };
    if let Some(within_ms) = args.detect {
        plan_detect(within_ms).map_err(|error| too_short("detect", "ms", error))
    } else if let Some(path_idle_s) = args.path {
        plan_path(path_idle_s).map_err(|error| too_short("path", "s", error))
    } else if let Some(name) = &args.preset {
        let preset =
            presets::named(name).map_err(|unknown| Failure::new(format_args!("plan: --preset {unknown}")))?;
        preset.plan().map_err(|error| too_short("preset", "s", error))
    } else {
        let typed = args.policy.unwrap_or(Config::STANDARD);
        if typed.enabled() != Some(true) {
            return Err(Failure::new(format_args!(
                "plan: --policy {typed}: the policy must turn keepalive on"
            )));
        }
        typed
            .on_top_of(&Config::STANDARD)
            .map_err(|error| Failure::new(format_args!("plan: --policy: {error}")))
    }
}

/// The effect of an automatic `rto_max`, in JSON.
#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "they are keys in JSON, which name their unit")]
struct AutoRtoMax {
    rto_max_ms: i32,
    data_typical_ms: u64,
    data_worst_ms: u64,
}

impl AutoRtoMax {
    /// Computes the effect for a policy, or returns `None` if the policy already limits retransmission.
    fn of(config: &Config, system: Retransmission) -> Option<Self> {
        let has_timeout = !matches!(config.user_timeout(), UserTimeout::Keep | UserTimeout::Milliseconds(0));
        if has_timeout || config.names(Timer::RtoMax) {
            return None;
        }
        let config = config.with_rto_max(RtoMax::Auto).ok()?.resolved(system.retries);
        let time = config.data_time(system).ok()?;
        Some(Self {
            rto_max_ms: config.timer(Timer::RtoMax)?,
            data_typical_ms: time.typical_ms,
            data_worst_ms: time.worst_ms,
        })
    }
}

/// A policy and its effect, in JSON.
#[derive(Serialize)]
struct Plan {
    policy: String,
    idle: i32,
    intvl: i32,
    cnt: i32,
    user_timeout_ms: Option<i32>,
    rto_max_ms: Option<i32>,
    typical_ms: u64,
    worst_ms: u64,
    /// The detection time of a dead peer while data is unacknowledged.
    data_typical_ms: u64,
    data_worst_ms: u64,
    /// net.ipv4.tcp_retries2 of this network namespace, from which these two times are computed.
    tcp_retries2: u8,
    /// The same times with an automatic `rto_max`, if the policy has neither it nor a user timeout.
    auto_rto_max: Option<AutoRtoMax>,
    /// Probes of one idle connection whose peer answers.
    probes_per_hour: f64,
    bytes_per_day: f64,
    connections: u64,
    all_probes_per_hour: f64,
    all_bytes_per_day: f64,
    /// Problems of the policy, each with a better choice.
    warnings: Vec<String>,
}

impl Plan {
    fn new(config: Config, connections: u64) -> Result<Self, Failure> {
        let Detection { typical_ms, worst_ms } =
            config.detection().map_err(|error| Failure::new(format_args!("plan: {error}")))?;
        let idle = config.idle().unwrap_or_default();
        let intvl = config.intvl().unwrap_or_default();
        let user_timeout_ms = match config.user_timeout() {
            UserTimeout::Keep => None,
            UserTimeout::Auto => Some(user_timeout_limit(&config)),
            UserTimeout::Milliseconds(value) => Some(value),
        };
        let system = Retransmission::read();
        let data = config.data_time(system).map_err(|error| Failure::new(format_args!("plan: {error}")))?;
        // After a probe, the kernel arms the timer for intvl, and the answer does not shorten it. If intvl is longer
        // than idle, a probe is sent every intvl (net/ipv4/tcp_timer.c, tcp_keepalive_timer).
        let probes_per_hour = 3600.0 / f64::from(idle.max(intvl).max(1));
        let bytes_per_day = 24.0 * probes_per_hour * BYTES_PER_PROBE;
        #[expect(clippy::cast_precision_loss, reason = "a number of connections")]
        let all = connections as f64;
        let plan = Self {
            policy: Text::typed(&config).to_string(),
            idle,
            intvl,
            cnt: config.cnt().unwrap_or_default(),
            user_timeout_ms,
            rto_max_ms: config.resolved(system.retries).timer(Timer::RtoMax),
            typical_ms,
            worst_ms,
            data_typical_ms: data.typical_ms,
            data_worst_ms: data.worst_ms,
            tcp_retries2: system.retries,
            auto_rto_max: AutoRtoMax::of(&config, system),
            probes_per_hour,
            bytes_per_day,
            connections,
            all_probes_per_hour: all * probes_per_hour,
            all_bytes_per_day: all * bytes_per_day,
            warnings: Vec::new(),
        };
        Ok(Self { warnings: plan.warnings(user_timeout_limit(&config)), ..plan })
    }

    /// Returns the problems of the policy. `automatic` is a suitable user timeout, in milliseconds.
    fn warnings(&self, automatic: i32) -> Vec<String> {
        let Self { idle, intvl, cnt, .. } = *self;
        let timeout = self.user_timeout();
        let mut warnings = Vec::new();
        if let Some(timeout) = timeout.filter(|timeout| i64::from(*timeout) < 1000 * i64::from(idle)) {
            let short = exact(timeout);
            warnings.push(format!(
                "The user timeout, {short}, is shorter than the idle time, {idle} s. The first unanswered probe ends \
                 an idle connection. A connection with unacknowledged data ends after {short}, even if the peer is \
                 alive and only reads slowly. Better: user_timeout=auto (here {} s), or user_timeout=none.",
                automatic / 1000
            ));
        }
        if self.probes() == 1 {
            let safer = match timeout {
                None => "--detect 5s or longer, or cnt=3",
                Some(_) if cnt < 3 => "cnt=3 with user_timeout=auto or user_timeout=none",
                Some(_) => "user_timeout=auto or user_timeout=none",
            };
            warnings.push(format!(
                "With one probe, one lost packet ends a connection whose peer is alive. Three probes are safer: \
                 {safer}."
            ));
        }
        if intvl > idle {
            warnings.push(format!(
                "The interval is longer than the idle time. After an answered probe, the next one comes {intvl} s \
                 later, not {idle} s. A peer that dies in between is detected {} s later than shown here. Better: an \
                 interval of at most {idle} s.",
                intvl - idle
            ));
        }
        warnings
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let Self { idle, intvl, cnt, connections, .. } = self;
        let probes = self.probes();
        let timeout = self.user_timeout();
        let instead = match timeout {
            Some(_) => format!(" (the user timeout overrides cnt, which is {cnt})"),
            None => String::new(),
        };
        writeln!(
            out,
            "idle {idle} s, then a probe every {intvl} s, dead after {probes} unanswered{instead}"
        )?;
        if let Some(timeout) = timeout {
            writeln!(out, "user timeout {timeout} ms, also for unacknowledged data")?;
        }
        if let Some(rto_max) = self.rto_max_ms {
            writeln!(out, "at most {rto_max} ms between two retransmissions of unacknowledged data")?;
        }
        writeln!(out)?;
        self.draw(out)?;
        writeln!(out)?;
        writeln!(
            out,
            "A dead peer is detected after {}. The kernel's timers may be up to 1/8 late, so this takes {} at most.",
            words(self.typical_ms),
            words(self.worst_ms.next_multiple_of(1000)),
        )?;
        self.write_data(out)?;
        for warning in &self.warnings {
            writeln!(out, "{warning}")?;
        }
        writeln!(
            out,
            "While the connection is idle and the peer answers: {} probes/hour, {}/day (IPv4, with the answers){}.",
            rounded(self.probes_per_hour),
            bytes(self.bytes_per_day),
            if *connections > 1 {
                format!(
                    "; {connections} connections: {} probes/hour, {}/day",
                    rounded(self.all_probes_per_hour),
                    bytes(self.all_bytes_per_day)
                )
            } else {
                String::new()
            }
        )?;
        self.write_elsewhere(out)
    }

    /// Writes what happens while data is unacknowledged, and what an automatic `rto_max` would change.
    fn write_data(&self, out: &mut impl Write) -> io::Result<()> {
        let seconds = |milliseconds: u64| words(milliseconds.next_multiple_of(1000));
        let timeout = self.user_timeout();
        let why = match timeout {
            Some(_) => "the user timeout".to_owned(),
            None => format!("tcp_retries2 = {}", self.tcp_retries2),
        };
        writeln!(
            out,
            "While sent data is unacknowledged, no probe is sent. A dead peer is then detected after {} ({why}), {} at \
             most.",
            seconds(self.data_typical_ms),
            seconds(self.data_worst_ms),
        )?;
        if let Some(auto) = &self.auto_rto_max {
            writeln!(
                out,
                "With -r auto, an rto_max of {} ms here, it is detected after {}, {} at most. rto_max limits the time \
                 between two retransmissions, and never ends a connection to a peer that only reads slowly. It needs \
                 Linux 6.15.",
                auto.rto_max_ms,
                seconds(auto.data_typical_ms),
                seconds(auto.data_worst_ms),
            )?;
        }
        Ok(())
    }

    /// Writes the policy in the syntax of other software.
    fn write_elsewhere(&self, out: &mut impl Write) -> io::Result<()> {
        let Self { idle, intvl, cnt, .. } = self;
        let timeout = self.user_timeout();
        let also =
            |text: &str| timeout.map_or_else(String::new, |timeout| text.replace("MS", &timeout.to_string()));
        let rto_max = |text: &str| {
            self.rto_max_ms.map_or_else(String::new, |rto_max| text.replace("MS", &rto_max.to_string()))
        };
        let flags = format!("-d {idle} -i {intvl} -c {cnt}{}{}", also(" -u MSms"), rto_max(" -r MS"));
        let has_others = timeout.is_some() || self.rto_max_ms.is_some();
        let policy = if has_others { self.policy.clone() } else { format!("{idle},{intvl},{cnt}") };
        let shim = via::shim_path().map_or_else(
            |why| format!("# {why}"),
            |shim| format!("LD_PRELOAD={} KA_POLICY={policy} PROGRAM", quoted(shim.as_os_str())),
        );
        let sections = [
            ("a program", format!("ka run {flags} -- PROGRAM")),
            ("a process", format!("ka attach {flags} PID")),
            ("the shim without ka run", shim),
            (
                "C, with libka",
                format!(
                    "ka_enable(fd, {idle}, {intvl}, {cnt});{}{}",
                    also("\nka_set_user_timeout(fd, MS);"),
                    rto_max("\nka_set_rto_max(fd, MS);")
                ),
            ),
            (
                "systemd.socket(5)",
                format!(
                    "[Socket]\nKeepAlive=yes\nKeepAliveTimeSec={idle}\nKeepAliveIntervalSec={intvl}\n\
                     KeepAliveProbes={cnt}"
                ),
            ),
            (
                "sysctl.d(5): default timers only; does not turn keepalive on",
                sysctl::lines([*idle, *intvl, *cnt]),
            ),
            ("nginx", format!("listen 443 ssl so_keepalive={idle}s:{intvl}s:{cnt};")),
            (
                "PostgreSQL, postgresql.conf",
                format!(
                    "tcp_keepalives_idle = {idle}\ntcp_keepalives_interval = {intvl}\ntcp_keepalives_count = {cnt}{}",
                    also("\ntcp_user_timeout = MS")
                ),
            ),
            (
                "PostgreSQL's clients (libpq)",
                format!(
                    "keepalives=1 keepalives_idle={idle} keepalives_interval={intvl} keepalives_count={cnt}{}",
                    also(" tcp_user_timeout=MS")
                ),
            ),
            (
                "Go 1.23 and later, in net.Dialer and net.ListenConfig",
                format!(
                    "KeepAliveConfig: net.KeepAliveConfig{{Enable: true, Idle: {idle} * time.Second, \
                     Interval: {intvl} * time.Second, Count: {cnt}}}"
                ),
            ),
        ];
        for (what, text) in sections {
            writeln!(out, "\n{what}:")?;
            for line in text.lines() {
                writeln!(out, "    {line}")?;
            }
        }
        Ok(())
    }

    /// Returns the user timeout in milliseconds, if the policy sets one.
    fn user_timeout(&self) -> Option<i32> {
        self.user_timeout_ms.filter(|timeout| *timeout > 0)
    }

    /// Returns the number of unanswered probes that end a connection: cnt, unless the user timeout overrides it.
    fn probes(&self) -> u128 {
        let [idle, intvl] = [self.idle, self.intvl].map(|value| u128::from(value.unsigned_abs()));
        u128::from(self.typical_ms / 1000).saturating_sub(idle) / intvl.max(1)
    }

    /// Draws a time line from the last packet to the end of the connection, with a mark for each probe.
    fn draw(&self, out: &mut impl Write) -> io::Result<()> {
        let [first, line, probe, dead] =
            if has_unicode() { ['├', '─', '┼', '✕'] } else { ['|', '-', '+', 'X'] };
        let width = Layout::standard().width.unwrap_or(80).clamp(40, 100) - 8;
        let end = u128::from(self.typical_ms / 1000).max(1);
        let [idle, intvl] = [self.idle, self.intvl].map(|value| u128::from(value.unsigned_abs()));
        let probes = self.probes();
        let place = |time: u128| usize::try_from(time * (width as u128 - 1) / end).unwrap_or(0);
        let mut bar = vec![line; width];
        let mut labels = vec![' '; width + 12];
        let mut free = 0;
        let mut mark = |time: u128, letter: char| {
            let place = place(time);
            if let Some(slot) = bar.get_mut(place) {
                *slot = letter;
            }
            // Draw the label only if it does not overlap the one before.
            let label = time.to_string();
            if place >= free {
                free = place + label.len() + 1;
                for (slot, digit) in labels.iter_mut().skip(place).zip(label.chars()) {
                    *slot = digit;
                }
            }
        };
        mark(0, first);
        for n in 0..probes {
            mark(idle + n * intvl, probe);
        }
        mark(end, dead);
        let text = |letters: Vec<char>| letters.into_iter().collect::<String>().trim_end().to_owned();
        writeln!(out, "    {}", text(bar))?;
        writeln!(out, "    {} s", text(labels))?;
        writeln!(out, "    last packet, {} {}, dead", probes, if probes == 1 { "probe" } else { "probes" })
    }
}

/// Returns whether the locale's character set is UTF-8, which has box-drawing characters. locale(7)
fn has_unicode() -> bool {
    let locale =
        ["LC_ALL", "LC_CTYPE", "LANG"].iter().filter_map(env::var_os).find(|value| !value.is_empty());
    locale.is_some_and(|locale| {
        let locale = locale.to_string_lossy().to_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

/// Formats a time in the largest unit in which it is a whole number.
fn exact(milliseconds: i32) -> String {
    match milliseconds {
        whole if whole % 1000 == 0 => format!("{} s", whole / 1000),
        milliseconds => format!("{milliseconds} ms"),
    }
}

fn rounded(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn bytes(value: f64) -> String {
    let (value, unit) = match value {
        value if value < 1e3 => (value, "B"),
        value if value < 1e6 => (value / 1e3, "kB"),
        value if value < 1e9 => (value / 1e6, "MB"),
        value => (value / 1e9, "GB"),
    };
    format!("{} {unit}", rounded(value))
}

/// Lists the presets with their policies.
fn list(out: &mut impl Write, json: bool) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Listed {
        name: &'static str,
        path_idle_s: u32,
        idle: i32,
        intvl: i32,
        cnt: i32,
        source: &'static str,
        url: &'static str,
    }
    let listed = |preset: &Preset| {
        let config = preset.plan().unwrap_or(Config::STANDARD);
        let value = |value: Option<i32>| value.unwrap_or_default();
        let (idle, intvl, cnt) = (value(config.idle()), value(config.intvl()), value(config.cnt()));
        let Preset { name, path_idle_s, source, url } = *preset;
        Listed { name, path_idle_s, idle, intvl, cnt, source, url }
    };
    let presets: Vec<_> = PRESETS.iter().map(listed).collect();
    if json {
        json::to_writer_pretty(&mut *out, &presets)?;
        writeln!(out)?;
        return Ok(());
    }
    let columns =
        [Column::left("PRESET"), Column::right("IDLE LIMIT"), Column::left("POLICY"), Column::left("SOURCE")];
    let rows: Vec<Vec<Cell>> = presets
        .iter()
        .map(|preset| {
            let Listed { name, path_idle_s, idle, intvl, cnt, source, .. } = *preset;
            vec![
                name.into(),
                format!("{path_idle_s} s").into(),
                format!("{idle},{intvl},{cnt}").into(),
                source.into(),
            ]
        })
        .collect();
    table::write(out, Layout { width: None, ..Layout::standard() }, &columns, &rows)?;
    writeln!(out, "\nOther names:")?;
    for (alias, name) in presets::ALIASES {
        writeln!(out, "  {alias}: {name}")?;
    }
    writeln!(out, "\nSources of the idle limits:")?;
    for Listed { name, url, .. } in presets {
        writeln!(out, "  {name}: {url}")?;
    }
    Ok(())
}
