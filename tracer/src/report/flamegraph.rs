//! Flame graph (SVG) of what is outstanding, drawn by inferno: width is bytes or blocks, colour is the module.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use inferno::flamegraph::{
    self,
    color::{BackgroundColor, Color, PaletteMap},
};

use super::{
    escape, filters,
    merge::{Merged, unit},
    numbers,
    options::{Options, Value},
    words,
};
use crate::profile::{Kind, Profile};

/// Most characters of a frame's name. A browser has no use for the 50,000 of some C++ names, times every frame.
const LONGEST_NAME: usize = 1_000;

/// Most characters of title and subtitle: what fits into inferno's 1,200 pixels.
const LONGEST_TITLE: usize = 100;
const LONGEST_SUBTITLE: usize = 150;

/// Share of the whole, in percent, below which a frame is not drawn: an eighth of a pixel.
const NARROWEST_PERCENT: f64 = 0.01;

/// Frames of no known module, and the process.
const GREY: Color = Color { r: 190, g: 190, b: 190 };

/// Writes the flame graph; a picture that says so when nothing is outstanding.
pub(super) fn write(profile: &Profile, options: &Options, out: &mut impl Write) -> io::Result<()> {
    let merged = Merged::new(profile, options, LONGEST_NAME);
    if merged.stacks().next().is_none() {
        return write_empty(profile, options.value, out);
    }
    let mut palette = palette(&merged);
    let mut drawing = flamegraph::Options::default();
    drawing.title = title(profile, options.value);
    drawing.subtitle = Some(subtitle(profile, options.value));
    drawing.count_name = unit(profile, options.value).to_owned();
    drawing.name_type = "Frame:".to_owned();
    drawing.bgcolors = Some(BackgroundColor::Flat(Color { r: 248, g: 248, b: 248 }));
    drawing.palette_map = Some(&mut palette);
    drawing.min_width = NARROWEST_PERCENT;
    let lines = wide_lines(&merged);
    flamegraph::from_lines(&mut drawing, lines.iter().map(String::as_str), out)
}

/// The folded stacks without the frames that are too narrow to be drawn; their amounts stay with their callers.
///
/// The frames in the picture and their widths are the same as with them: inferno leaves them out too, but only after it
/// has laid out every frame of every stack.
fn wide_lines(merged: &Merged<'_>) -> Vec<String> {
    let total: u64 = merged.stacks().map(|(_, amount)| amount).sum();
    let narrowest = total as f64 * NARROWEST_PERCENT / 100.0;
    let mut walk = Walk { merged, narrowest, path: Vec::new(), amounts: Vec::new(), lines: Vec::new() };
    for (stack, amount) in merged.stacks() {
        walk.visit(stack, amount);
    }
    walk.leave(0);
    walk.lines
}

/// A walk over the tree of frames, which sorted stacks are.
struct Walk<'a> {
    merged: &'a Merged<'a>,
    narrowest: f64,
    path: Vec<usize>,
    amounts: Vec<Amounts>,
    lines: Vec<String>,
}

/// What a frame holds.
#[derive(Clone, Default)]
struct Amounts {
    /// By itself, and by callees that are too narrow.
    own: u64,
    /// With all callees.
    total: u64,
}

impl Walk<'_> {
    fn visit(&mut self, stack: &[usize], amount: u64) {
        let shared = stack.iter().zip(&self.path).take_while(|(a, b)| a == b).count();
        self.leave(shared);
        self.path.extend(&stack[shared..]);
        self.amounts.resize(stack.len(), Amounts::default());
        if let Some(leaf) = self.amounts.last_mut() {
            leaf.own += amount;
            leaf.total += amount;
        }
    }

    /// Leaves the frames beyond `depth`: all their callees have been visited.
    fn leave(&mut self, depth: usize) {
        while self.path.len() > depth {
            let Some(left) = self.amounts.pop() else { return };
            let wide = left.total as f64 >= self.narrowest || self.path.len() == 1;
            if wide && left.own > 0 {
                self.lines.push(format!("{} {}", self.merged.line(&self.path), left.own));
            }
            if let Some(caller) = self.amounts.last_mut() {
                caller.total += left.total;
                caller.own += if wide { 0 } else { left.total };
            }
            self.path.pop();
        }
    }
}

fn title(profile: &Profile, value: Value) -> String {
    let totals = profile.totals();
    let held = match profile.kind {
        Kind::Heap if value == Value::Mapped => match &profile.mappings {
            Some(mappings) => {
                let (mapped, _) = mappings.totals(false);
                format!("{} mapped in {}", numbers::exact_size(mapped.bytes), numbers::count(mapped.ranges, "range"))
            }
            None => "mapped memory not recorded".to_owned(),
        },
        Kind::Heap => format!(
            "{} outstanding in {}",
            numbers::exact_size(totals.outstanding_bytes),
            numbers::count(totals.outstanding_blocks, "block")
        ),
        Kind::Goroutines => numbers::count(profile.goroutine_count(), "goroutine"),
    };
    let room = LONGEST_TITLE.saturating_sub(held.chars().count() + 2);
    format!("{}: {held}", escape::shorten(Cow::Owned(words::targets(profile)), room))
}

fn subtitle(profile: &Profile, value: Value) -> String {
    let missing = words::missing(&profile.quality);
    let quality =
        if missing.is_empty() { "complete".to_owned() } else { format!("INCOMPLETE: {}", missing.join("; ")) };
    let text = match profile.kind {
        Kind::Heap => {
            // They are of blocks.
            let filters = filters::confined(&profile.filters).filter(|_| value != Value::Mapped);
            let filters = filters.map(|words| format!("{words}, ")).unwrap_or_default();
            format!("traced for {}, {filters}{quality}", numbers::duration(profile.duration))
        }
        Kind::Goroutines => format!("at one moment, {quality}"),
    };
    escape::shorten(Cow::Owned(text), LONGEST_SUBTITLE).into_owned()
}

/// A colour for each name.
fn palette(merged: &Merged<'_>) -> PaletteMap {
    let mut palette = PaletteMap::default();
    palette.insert("", GREY); // the frame under all others
    for name in merged.names() {
        palette.insert(&name.text, name.module.as_deref().map_or(GREY, color));
    }
    palette
}

/// The colour of a module: light enough for black text, the same in every flame graph.
fn color(module: &str) -> Color {
    // FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/
    let hash =
        module.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let hue = (hash >> 32) as f64 / f64::from(u32::MAX);
    // One channel of a colour wheel from 120 to 245; `turn` is the place of the channel's peak on the wheel.
    let channel = |turn: f64| {
        let distance = ((hue - turn + 0.5).rem_euclid(1.0) - 0.5).abs();
        (120.0 + 125.0 * (2.0 - 6.0 * distance).clamp(0.0, 1.0)) as u8
    };
    Color { r: channel(0.0), g: channel(1.0 / 3.0), b: channel(2.0 / 3.0) }
}

/// inferno takes no empty input, so the picture of nothing is our own.
fn write_empty(profile: &Profile, value: Value, out: &mut impl Write) -> io::Result<()> {
    let nothing = match profile.kind {
        Kind::Heap if value == Value::Mapped && profile.mappings.is_none() => {
            "what the program maps itself was not recorded".to_owned()
        }
        Kind::Heap if value == Value::Mapped => "nothing is mapped by the program itself".to_owned(),
        Kind::Heap => filters::nothing(profile),
        Kind::Goroutines => "there is no goroutine".to_owned(),
    };
    let lines = [title(profile, value), subtitle(profile, value), nothing];
    writeln!(out, r#"<?xml version="1.0" encoding="UTF-8"?>"#)?;
    writeln!(out, r#"<svg version="1.1" width="1200" height="110" xmlns="http://www.w3.org/2000/svg">"#)?;
    writeln!(out, r##"<rect width="100%" height="100%" fill="#f8f8f8"/>"##)?;
    for (line, y) in lines.iter().zip([30, 60, 90]) {
        let text = escape::xml(line);
        writeln!(out, r#"<text x="600" y="{y}" text-anchor="middle" font-family="monospace">{text}</text>"#)?;
    }
    writeln!(out, "</svg>")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use quick_xml::{
        Reader,
        events::{BytesRef, Event},
    };

    use super::*;
    use crate::{
        profile::StackEntry,
        report::{Format, fixture},
    };

    fn svg(profile: &Profile, value: Value) -> String {
        fixture::rendered(Format::Svg, profile, &Options { value, ..fixture::OPTIONS })
    }

    /// Parses the whole document as XML and returns the text of every element of one kind.
    fn texts_of(element: &str, svg: &str) -> Vec<String> {
        let forbidden = |character: &char| character.is_control() || matches!(character, '\u{fffe}' | '\u{ffff}');
        assert_eq!(svg.chars().find(|character| *character != '\n' && forbidden(character)), None);
        let mut reader = Reader::from_str(svg);
        let (mut texts, mut open) = (Vec::new(), Vec::new());
        loop {
            match reader.read_event().unwrap() {
                Event::Start(start) => {
                    start.attributes().for_each(|attribute| drop(attribute.unwrap()));
                    open.push(start.name().as_ref().to_owned());
                    texts.extend((start.name().as_ref() == element.as_bytes()).then(String::new));
                }
                Event::End(_) => drop(open.pop()),
                Event::Text(text) if open.last().is_some_and(|name| name == element.as_bytes()) => {
                    texts.last_mut().unwrap().push_str(&text.decode().unwrap());
                }
                Event::GeneralRef(entity) => {
                    let character = resolve(&entity);
                    if open.last().is_some_and(|name| name == element.as_bytes()) {
                        texts.last_mut().unwrap().push(character);
                    }
                }
                Event::Eof => break,
                _ => {}
            }
        }
        assert!(open.is_empty());
        texts
    }

    fn resolve(entity: &BytesRef<'_>) -> char {
        match (entity.resolve_char_ref().unwrap(), &**entity) {
            (Some(character), _) => character,
            (None, b"lt") => '<',
            (None, b"gt") => '>',
            (None, b"amp") => '&',
            (None, b"quot") => '"',
            (None, b"apos") => '\'',
            (None, other) => panic!("XML does not define {other:?}"),
        }
    }

    #[test]
    fn golden() {
        fixture::check_golden("report_bytes.svg", &svg(&fixture::profile(), Value::Bytes));
        fixture::check_golden("report_nothing.svg", &svg(&fixture::nothing_outstanding(), Value::Bytes));
    }

    #[test]
    fn every_frame_is_there_with_its_amount() {
        let titles = texts_of("title", &svg(&fixture::profile(), Value::Bytes));
        for title in [
            "all (1,572,864 bytes, 100%)",
            "leaky (1,572,864 bytes, 100.00%)",
            "serve(int) (1,048,576 bytes, 66.67%)",
            "xmlNewNode (524,288 bytes, 33.33%)",
        ] {
            assert!(titles.iter().any(|there| there == title), "{title} is not in {titles:?}");
        }
        let titles = texts_of("title", &svg(&fixture::profile(), Value::Count));
        assert!(titles.contains(&"all (1,029 blocks, 100%)".to_owned()), "{titles:?}");
        assert!(titles.contains(&"[unknown] 0x7f0012345678 (3 blocks, 0.29%)".to_owned()), "{titles:?}");
    }

    #[test]
    fn title_and_subtitle_say_what_it_is_and_whether_it_is_complete() {
        let check = |profile: &Profile, title: &str, subtitle: &str| {
            let texts = texts_of("text", &svg(profile, Value::Bytes));
            assert!(texts[0] == title && texts[1] == subtitle, "{texts:?}");
        };
        let mut profile = fixture::profile();
        let title = "leaky (pid 4711): 1.50 MiB (1,572,864 bytes) outstanding in 1,029 blocks";
        check(&profile, title, "traced for 1m 1s, complete");
        profile.quality.lost_frees = 1;
        check(&profile, title, "traced for 1m 1s, INCOMPLETE: 1 free lost (the ring buffer was full)");
        profile.filters.min_age = Duration::from_secs(60);
        check(
            &profile,
            title,
            "traced for 1m 1s, only blocks held for 1m or longer, INCOMPLETE: 1 free lost (the ring buffer was full)",
        );
        profile.filters.min_age = Duration::ZERO;
        profile.stacks.clear();
        let title = "leaky (pid 4711): 0 bytes outstanding in 0 blocks";
        check(&profile, title, "traced for 1m 1s, INCOMPLETE: 1 free lost (the ring buffer was full)");
    }

    #[test]
    fn hostile_names_leave_it_valid_and_show_as_they_are() {
        let mut profile = fixture::hostile();
        for value in [Value::Bytes, Value::Count] {
            let drawn = svg(&profile, value);
            assert_eq!(drawn.matches("<script").count(), 1, "only inferno's own script may be there");
            let titles = texts_of("title", &drawn);
            assert!(titles.iter().any(|title| title.contains("<script>alert('x')</script>]]>&\"--")), "{titles:?}");
            assert!(titles.iter().all(|title| title.chars().count() < LONGEST_NAME + 40));
        }
        profile.stacks.clear();
        let empty = svg(&profile, Value::Bytes);
        assert!(!empty.contains("<script"));
        assert_eq!(texts_of("text", &empty)[2], "nothing is outstanding: no allocation was seen");
        profile.processes[0].comm = "<&>".to_owned();
        assert!(texts_of("text", &svg(&profile, Value::Bytes))[0].starts_with("<&> (pid 4711) and 1 more: "));
    }

    /// Colour of the first frame whose title starts with `name`.
    fn fill_of<'a>(svg: &'a str, name: &str) -> &'a str {
        let rest = svg.split(&format!("<title>{name}")).nth(1).unwrap();
        rest.split("fill=\"").nth(1).unwrap().split('"').next().unwrap()
    }

    #[test]
    fn colour_is_the_module() {
        let svg = svg(&fixture::profile(), Value::Count);
        let grey = "rgb(190,190,190)";
        assert_eq!(fill_of(&svg, "main ("), fill_of(&svg, "serve(int)"));
        assert_ne!(fill_of(&svg, "main ("), fill_of(&svg, "xmlNewNode"));
        assert_ne!(fill_of(&svg, "main ("), grey);
        for unknown in ["all (", "leaky (", "[unknown] 0x7f0012345678"] {
            assert_eq!(fill_of(&svg, unknown), grey, "{unknown}");
        }
        for module in ["a", "libc.so.6", "redis-server", "[vdso]"] {
            let Color { r, g, b } = color(module);
            assert!(u32::from(r) + u32::from(g) + u32::from(b) >= 450, "{module} is too dark for black text");
        }
    }

    #[test]
    fn leaving_out_what_is_too_narrow_changes_neither_the_frames_nor_their_widths() {
        let frames = |svg: &[u8]| {
            let mut titles = texts_of("title", std::str::from_utf8(svg).unwrap());
            titles.sort_unstable();
            titles
        };
        let mut profile = fixture::profile();
        let depths = [1, 5, 2, 3, 40, 7];
        for stack in 0..3_000_u64 {
            // Three callees of each frame, so that stacks share their roots; the amounts go from far too little to a lot.
            let depth = depths[stack as usize % depths.len()];
            let names: Vec<_> = (0..depth).map(|level| format!("f{}", stack / 3_u64.pow(level.min(9)) % 3)).collect();
            let path: Vec<_> = names.iter().map(|name| fixture::frame(name, "/m", None)).collect();
            let bytes = 1 << (stack * 7 % 19);
            profile.stacks.push(fixture::entry(&path.iter().collect::<Vec<_>>(), (bytes, 1), (bytes, 1), 0));
        }
        let tiny = fixture::entry(&[&fixture::frame("f0", "/m", None)], (1, 1), (1, 1), 0);
        profile.stacks.push(StackEntry { pid: 1, ..tiny });
        let merged = Merged::new(&profile, &fixture::OPTIONS, LONGEST_NAME);
        let all: Vec<String> = merged.stacks().map(|(stack, n)| format!("{} {n}", merged.line(stack))).collect();
        let wide = wide_lines(&merged);
        let draw = |lines: &[String]| {
            let mut drawing = flamegraph::Options::default();
            drawing.min_width = NARROWEST_PERCENT;
            let mut svg = Vec::new();
            flamegraph::from_lines(&mut drawing, lines.iter().map(String::as_str), &mut svg).unwrap();
            frames(&svg)
        };
        assert!(wide.len() < all.len(), "{} of {} lines", wide.len(), all.len());
        assert_eq!(draw(&wide), draw(&all));
    }

    #[test]
    fn a_name_of_two_modules_has_the_same_colour_every_time() {
        let mut profile = fixture::profile();
        let twin = fixture::frame("main", "/lib/another", None);
        profile.stacks.push(fixture::entry(&[&twin], (1 << 20, 1), (1 << 20, 1), 0));
        let first = svg(&profile, Value::Bytes);
        for _ in 0..8 {
            assert!(svg(&profile, Value::Bytes) == first);
        }
        let Color { r, g, b } = color("another");
        assert_eq!(fill_of(&first, "main ("), format!("rgb({r},{g},{b})"));
    }
}
