//! The picture: title, totals, table, messages and dialogs. Only the visible sockets are formatted.

use ka_cli::socket_row::{COLUMNS, SocketRow};
use ka_cli::table::{Cell, Column, Extent, Paint, cut, fit};
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::border;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Widget as _};

use crate::app::{Dialog, View};
use crate::list::SocketId;

/// The smallest terminal that the view fits into.
const SMALLEST: (u16, u16) = (60, 8);
/// The height from which the view has room for the deaths.
const WITH_DEATHS: u16 = 14;

/// The keys: the name, the word in the last line of the view, and the text of the help. Keys without a word are only in
/// the help.
const KEYS: [(&str, &str, &str); 13] = [
    ("q", "quit", "quit, also with Ctrl-C"),
    ("?", "help", "show this help"),
    ("/", "filter", "filter by a text: ports, PIDs, names, addresses, risks"),
    ("r", "risks", "show only sockets with a risk"),
    ("s", "sort", "sort by the next column; S: the previous one"),
    ("p", "probe", "probe the selected connection now"),
    ("a", "apply", "apply the policy to the selected socket after a question"),
    ("Space", "pause", "pause and continue"),
    ("R", "", "reverse the order"),
    ("Esc", "", "show all sockets again"),
    ("arrows", "", "select a socket, also with Page Up/Down, Home, End"),
    ("Ctrl-L", "", "draw the screen again"),
    ("Ctrl-Z", "", "stop ka"),
];

/// The abilities of the terminal, and the widths of the columns so far.
pub(crate) struct Screen {
    is_utf8: bool,
    /// The columns keep the width of their longest cell, so that they do not jump at each refresh.
    extents: Vec<Extent>,
    /// The columns that the terminal was laid out for.
    columns: Vec<Column>,
    width: u16,
    /// The number of lines of the table.
    pub(crate) lines: usize,
}

impl Screen {
    pub(crate) const fn new(is_utf8: bool) -> Self {
        Self { is_utf8, extents: Vec::new(), columns: Vec::new(), width: 0, lines: 1 }
    }

    /// Draws the view.
    pub(crate) fn draw(&mut self, frame: &mut Frame<'_>, view: &mut View) {
        let area = frame.area();
        let buffer = frame.buffer_mut();
        if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
            let (width, height) = SMALLEST;
            let text =
                format!("ka top needs {width}x{height}, this is {}x{}. q quits", area.width, area.height);
            Paragraph::new(text).wrap(ratatui::widgets::Wrap { trim: true }).render(area, buffer);
            return;
        }
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let deaths = if area.height >= WITH_DEATHS { (area.height / 4).min(8) } else { 0 };
        let mut rest = area;
        let mut take = |height: u16| {
            let taken = Rect { height, ..rest };
            rest = Rect { y: rest.y + height, height: rest.height - height, ..rest };
            taken
        };
        self.line(buffer, take(1), &view.title(), bold);
        self.line(buffer, take(1), &view.list.totals(), Style::new());
        let table = take(area.height - 4 - deaths);
        self.table(buffer, table, view);
        if deaths > 0 {
            self.deaths(buffer, take(deaths), view);
        }
        let (text, paint) = view.message();
        self.line(buffer, take(1), &text, Self::style(paint));
        self.last_line(buffer, take(1), view);
        match &view.dialog {
            Dialog::Help => self.dialog(buffer, area, "Keys of ka top", &help()),
            Dialog::Confirm(application) => {
                let question = ["Apply the policy to this socket?", ""].into_iter().map(str::to_owned);
                let answers = ["", "y: apply    any other key: cancel"].into_iter().map(str::to_owned);
                let lines: Vec<_> = question.chain(application.question.clone()).chain(answers).collect();
                self.dialog(buffer, area, "Apply", &lines);
            }
            Dialog::None | Dialog::Filter { .. } => {}
        }
    }

    /// Returns the text as the terminal can show it.
    fn shown(&self, text: &str) -> String {
        if self.is_utf8 || text.is_ascii() {
            return text.to_owned();
        }
        let mut shown = String::new();
        for letter in text.chars() {
            match letter {
                '…' => shown.push('~'),
                letter if letter.is_ascii() => shown.push(letter),
                letter => shown.extend(letter.escape_default()),
            }
        }
        shown
    }

    /// crossterm prints no colours if NO_COLOR is set and not empty.
    fn style(paint: Paint) -> Style {
        match paint {
            Paint::Plain => Style::new(),
            Paint::Good => Style::new().fg(Color::Green),
            Paint::Warning => Style::new().fg(Color::Yellow),
            Paint::Bad => Style::new().fg(Color::Red),
        }
    }

    /// Writes a text into a line, and shortens it at the end.
    fn line(&self, buffer: &mut Buffer, area: Rect, text: &str, style: Style) {
        let text = self.fitted(text, usize::from(area.width), None, true);
        buffer.set_stringn(area.x, area.y, text, usize::from(area.width), style);
    }

    /// Shortens a text to `width` columns of the terminal. Some letters take two columns.
    fn fitted(&self, text: &str, width: usize, anchor: Option<char>, keeps_start: bool) -> String {
        let text = self.shown(text);
        let columns = |text: &str| Span::raw(text).width();
        if columns(&text) <= width {
            return text;
        }
        let mut letters = width;
        loop {
            let short = if keeps_start {
                let start = text.chars().take(letters.saturating_sub(1));
                start.chain(['…']).collect()
            } else {
                cut(&text, letters, anchor).into_owned()
            };
            let short = self.shown(&short);
            if columns(&short) <= width || letters == 0 {
                return short;
            }
            letters -= 1;
        }
    }

    fn table(&mut self, buffer: &mut Buffer, area: Rect, view: &mut View) {
        self.lines = usize::from(area.height.saturating_sub(1)).max(1);
        // The first column is shown only if there are several network namespaces.
        let has_netns = view.list.sockets().first().is_some_and(|socket| socket.netns.is_some());
        let from = usize::from(!has_netns);
        let mut rows: Vec<(bool, Vec<Cell>)> = view
            .list
            .visible(self.lines)
            .into_iter()
            .map(|(is_selected, socket)| {
                let mut cells = SocketRow::new(socket).cells().split_off(from);
                if !view.probes.is_empty() {
                    let result = view.probes.get(&SocketId::of(socket)).map_or("-", String::as_str);
                    cells.insert(cells.len().saturating_sub(1), result.to_owned().into());
                }
                (is_selected, cells)
            })
            .collect();
        for cell in rows.iter_mut().flat_map(|(_, cells)| cells) {
            if !self.is_utf8 {
                cell.text = self.shown(&cell.text).into();
            }
        }
        if rows.is_empty() {
            let text = if view.listed_at.is_none() {
                "listing the sockets"
            } else if view.list.filter().is_active() {
                "no socket matches the filter"
            } else {
                "no TCP sockets"
            };
            self.line(buffer, Rect { y: area.y + 1, ..area }, text, Style::new());
            return;
        }
        // The risks are the last column, and may be longer than the rest of the line.
        let mut columns: Vec<_> = COLUMNS
            .into_iter()
            .skip(from)
            .map(|column| if column.head == "RISK" { column.at_least(10) } else { column })
            .collect();
        if !view.probes.is_empty() {
            columns.insert(columns.len().saturating_sub(1), Column::right("PROBE").at_least(6));
        }
        if self.columns.len() != columns.len() || self.width != area.width {
            self.extents = columns.iter().map(Extent::of_head).collect();
            self.columns = columns;
            self.width = area.width;
        }
        for (_, cells) in &rows {
            for (extent, cell) in self.extents.iter_mut().zip(cells) {
                extent.add(cell);
                // Some letters take two columns.
                extent.widen(Span::raw(&*cell.text).width());
            }
        }
        let (widths, gap) = fit(Some(area.width.into()), &self.columns, &self.extents);
        let heads: Vec<_> = self.columns.iter().map(|column| Cell::from(column.head)).collect();
        let head = Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED);
        self.row(buffer, Rect { height: 1, ..area }, &heads, &widths, gap, head);
        for ((is_selected, cells), y) in rows.iter().zip(area.y + 1..) {
            let style =
                if *is_selected { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
            self.row(buffer, Rect { y, height: 1, ..area }, cells, &widths, gap, style);
        }
    }

    fn row(
        &self,
        buffer: &mut Buffer,
        area: Rect,
        cells: &[Cell],
        widths: &[Option<usize>],
        gap: &'static str,
        style: Style,
    ) {
        buffer.set_style(area, style);
        let mut spans: Vec<Span<'_>> = Vec::new();
        for ((cell, column), width) in cells.iter().zip(&self.columns).zip(widths) {
            let Some(width) = width else { continue };
            if !spans.is_empty() {
                spans.push(Span::raw(gap));
            }
            let text = self.fitted(&cell.text, *width, column.anchor, false);
            let blanks = " ".repeat(width.saturating_sub(Span::raw(&text).width()));
            let span = Span::styled(text, Self::style(cell.paint));
            let (first, second) =
                if column.right { (Span::raw(blanks), span) } else { (span, Span::raw(blanks)) };
            spans.extend([first, second]);
        }
        buffer.set_line(area.x, area.y, &Line::from(spans).patch_style(style), area.width);
    }

    fn deaths(&self, buffer: &mut Buffer, area: Rect, view: &View) {
        let head = Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED);
        buffer.set_style(Rect { height: 1, ..area }, head);
        self.line(buffer, Rect { height: 1, ..area }, &view.deaths.title(), head);
        let room = usize::from(area.height.saturating_sub(1));
        for (text, y) in view.deaths.last(room).zip(area.y + 1..) {
            self.line(buffer, Rect { y, height: 1, ..area }, text, Style::new());
        }
    }

    /// Draws the last line: the text of the filter while the user types it, or the most important keys.
    fn last_line(&self, buffer: &mut Buffer, area: Rect, view: &View) {
        if let Dialog::Filter { .. } = view.dialog {
            let prompt = format!("filter: {}_   Enter: keep, Esc: cancel", view.list.filter().text);
            self.line(buffer, area, &prompt, Style::new().add_modifier(Modifier::BOLD));
            return;
        }
        let mut text = String::new();
        for (key, short, _) in KEYS.into_iter().filter(|(_, short, _)| !short.is_empty()) {
            let item = format!("{key} {short}");
            let gap = if text.is_empty() { "" } else { "  " };
            if text.len() + gap.len() + item.len() > usize::from(area.width) {
                break;
            }
            text.push_str(gap);
            text.push_str(&item);
        }
        buffer.set_style(area, Style::new().add_modifier(Modifier::REVERSED));
        self.line(buffer, area, &text, Style::new().add_modifier(Modifier::REVERSED));
    }

    fn dialog(&self, buffer: &mut Buffer, area: Rect, title: &str, lines: &[String]) {
        const ASCII: border::Set<'_> = border::Set {
            top_left: "+",
            top_right: "+",
            bottom_left: "+",
            bottom_right: "+",
            vertical_left: "|",
            vertical_right: "|",
            horizontal_top: "-",
            horizontal_bottom: "-",
        };
        let longest = lines.iter().map(|line| Span::raw(self.shown(line)).width()).max().unwrap_or(0);
        let width = u16::try_from(longest + 4).unwrap_or(u16::MAX).min(area.width);
        let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX).min(area.height);
        let place = Rect {
            x: area.x + (area.width - width) / 2,
            y: area.y + (area.height - height) / 2,
            width,
            height,
        };
        Clear.render(place, buffer);
        let set = if self.is_utf8 { border::PLAIN } else { ASCII };
        Block::bordered().border_set(set).title(title).render(place, buffer);
        for (text, y) in lines.iter().zip(place.y + 1..place.bottom().saturating_sub(1)) {
            let inside = Rect { x: place.x + 2, y, width: width.saturating_sub(4), height: 1 };
            self.line(buffer, inside, text, Style::new());
        }
    }
}

fn help() -> Vec<String> {
    KEYS.into_iter().map(|(key, _, text)| format!("{key:<8}{text}")).collect()
}
