//! The metrics as text: in the format OpenMetrics 1.0, or in the older format of Prometheus, 0.0.4.

use std::fmt;

use ka_reach::risk::Risk;
use ka_reach::version::VERSION;
use ka_reach::watch::{Cause, Metrics};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// The label of a sample: its name and its value.
type MetricLabel = [(&'static str, &'static str); 1];

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The older format. `promtool check metrics` reads only this one.
    Text,
}

impl Format {
    /// Returns the format that a header Accept prefers. Without a preference, that is [`Format::Text`], which every
    /// program can read.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        let quality = |kinds: &[&str]| {
            let of = |item: &str| {
                let mut parts = item.split(';').map(str::trim);
                let kind = parts.next()?;
                kinds.iter().any(|wanted| kind.eq_ignore_ascii_case(wanted)).then(|| {
                    let quality = parts.find_map(|part| part.strip_prefix("q=")?.trim().parse::<f32>().ok());
                    quality.unwrap_or(1.0)
                })
            };
            accept.split(',').filter_map(of).fold(0.0, f32::max)
        };
        let open = quality(&["application/openmetrics-text"]);
        let is_open = open > 0.0 && open >= quality(&["text/plain", "text/*", "*/*"]);
        if is_open { Self::OpenMetrics } else { Self::Text }
    }

    /// Returns the value of the header Content-Type.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Returns the metrics as text.
///
/// # Errors
///
/// The encoder has failed.
pub fn text(metrics: &Metrics, format: Format) -> Result<String, fmt::Error> {
    let mut text = String::new();
    encode(&mut text, &registry(metrics))?;
    Ok(match format {
        Format::OpenMetrics => text,
        Format::Text => older(&text),
    })
}

fn registry(metrics: &Metrics) -> Registry {
    let mut registry = Registry::with_prefix("ka");
    let version = [("version", VERSION)];
    registry.register("build", "The version of ka", Info::new(version));
    registry.register(
        "watch",
        "The source of the reports of ended connections: ebpf, diag or poll",
        Info::new(vec![("source", metrics.source.clone())]),
    );
    let counts = metrics.connections;
    let keepalive = [("on", counts.on), ("off", counts.off), ("unknown", counts.unknown)];
    registry.register("connections", "Open TCP connections, by keepalive", gauges("keepalive", keepalive));
    registry.register(
        "connections_at_risk",
        "Open TCP connections whose end may go unnoticed, by the risks of ka ls. One connection can have several risks",
        gauges("risk", Risk::ALL.map(Risk::name).into_iter().zip(counts.at_risk)),
    );
    registry.register(
        "deaths",
        "TCP connections that ended abnormally since the start of ka, by cause",
        counters("cause", Cause::ALL.map(Cause::name).into_iter().zip(metrics.deaths)),
    );
    registry.register(
        "missed_deaths",
        "TCP connections that may have ended abnormally, but without a report: the kernel dropped it, or the cause is \
         unclear",
        counters("reason", [("dropped", metrics.dropped), ("unclear", metrics.unclear)]),
    );
    registry.register(
        "keepalive_probes",
        "Keepalive probes that the kernel sent in the watched network namespaces",
        counter(metrics.probes),
    );
    registry.register(
        "incomplete_lists",
        "Lists that lack some connections of the watched network namespaces",
        counter(metrics.incomplete),
    );
    if let Some(list) = metrics.last_list {
        registry.register(
            "last_list_timestamp_seconds",
            "The time of the last list of the connections, in seconds since 1970",
            ConstGauge::new(list.time_s),
        );
        registry.register(
            "last_list_duration_seconds",
            "The time that the last list of the connections took",
            ConstGauge::new(list.took_s),
        );
    }
    registry
}

fn counter(value: u64) -> Counter {
    let counter = Counter::default();
    counter.inc_by(value);
    counter
}

fn counters(
    label: &'static str,
    values: impl IntoIterator<Item = (&'static str, u64)>,
) -> Family<MetricLabel, Counter> {
    let family = Family::<MetricLabel, Counter>::default();
    for (value, count) in values {
        family.get_or_create(&[(label, value)]).inc_by(count);
    }
    family
}

fn gauges(
    label: &'static str,
    values: impl IntoIterator<Item = (&'static str, usize)>,
) -> Family<MetricLabel, Gauge> {
    let family = Family::<MetricLabel, Gauge>::default();
    for (value, count) in values {
        family.get_or_create(&[(label, value)]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    family
}

/// Converts OpenMetrics to the older format. There, the name of a metric is that of its samples, with `_total` and
/// `_info`, and there is no type "info".
fn older(text: &str) -> String {
    let types: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .filter_map(|(name, kind)| match kind {
            "counter" => Some((name, "_total", kind)),
            "info" => Some((name, "_info", "gauge")),
            _ => None,
        })
        .collect();
    let mut older = String::new();
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        let renamed = match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what @ ("HELP" | "TYPE")), Some(name), Some(rest)) => {
                types.iter().find(|(renamed, ..)| *renamed == name).map(|(_, suffix, kind)| {
                    let rest = if what == "TYPE" { kind } else { rest };
                    format!("# {what} {name}{suffix} {rest}")
                })
            }
            _ => None,
        };
        older.push_str(renamed.as_deref().unwrap_or(line));
        older.push('\n');
    }
    older
}

#[cfg(test)]
mod tests {
    use ka_reach::watch::WatchSource;

    use super::*;

    #[test]
    fn the_format_follows_the_header_accept() {
        // Sent by Prometheus 2.42.
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, format) in [
            (prometheus, Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text; version=1.0.0", Format::OpenMetrics),
            ("", Format::Text),
            ("*/*", Format::Text),
            ("text/html", Format::Text),
            ("application/openmetrics-text;q=0.1, text/plain", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;q=x", Format::OpenMetrics),
            (";;,,;q=", Format::Text),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }

    fn sample() -> Metrics {
        let mut metrics = Metrics::new(WatchSource::Ebpf);
        metrics.connections.off = 2;
        metrics.connections.at_risk[0] = 2;
        metrics.deaths[0] = 3;
        metrics.probes = u64::MAX;
        metrics
    }

    #[test]
    fn both_formats_have_the_same_samples() {
        let open = text(&sample(), Format::OpenMetrics).unwrap();
        let older = text(&sample(), Format::Text).unwrap();
        let mut samples: Vec<_> = open.lines().filter(|line| !line.starts_with('#')).collect();
        let mut same: Vec<_> = older.lines().filter(|line| !line.starts_with('#')).collect();
        samples.sort_unstable();
        same.sort_unstable();
        assert_eq!(samples, same);
        for sample in [
            "ka_connections{keepalive=\"on\"} 0",
            "ka_connections{keepalive=\"off\"} 2",
            "ka_connections_at_risk{risk=\"off\"} 2",
            "ka_connections_at_risk{risk=\"user-timeout\"} 0",
            "ka_deaths_total{cause=\"keepalive\"} 3",
            "ka_deaths_total{cause=\"destroyed\"} 0",
            "ka_missed_deaths_total{reason=\"dropped\"} 0",
            "ka_keepalive_probes_total 18446744073709551615",
            "ka_watch_info{source=\"ebpf\"} 1",
        ] {
            assert!(samples.contains(&sample), "{sample} is not in {open}");
        }
        assert!(open.ends_with("\n# EOF\n"), "{open}");
    }

    #[test]
    fn each_sample_of_the_older_format_has_a_type_and_a_help() {
        let older = text(&sample(), Format::Text).unwrap();
        for sample in older.lines().filter(|line| !line.starts_with('#')) {
            let name = sample.split(['{', ' ']).next().unwrap();
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            assert!(older.contains(&format!("# TYPE {name} {kind}\n")), "{name} in {older}");
            assert!(older.contains(&format!("# HELP {name} ")), "{name} in {older}");
        }
    }
}
