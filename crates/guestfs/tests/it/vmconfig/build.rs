//! Configurations built by hand, in both forms.

/// A value to build.
#[derive(Clone)]
pub enum V {
    Integer(i64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Bool(bool),
    Node(Vec<(String, V)>),
}

impl V {
    pub fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    pub fn node(entries: &[(&str, V)]) -> Self {
        let own = |(name, value): &(&str, V)| ((*name).to_owned(), value.clone());
        Self::Node(entries.iter().map(own).collect())
    }
}

/// A container, where its first key table lies, and its log.
pub struct Built {
    pub bytes: Vec<u8>,
    pub key_table: usize,
    pub log: usize,
}

const PAGE: usize = 4096;
const LOG_BYTES: usize = 8 * PAGE;

fn crc(record: &[u8], at: usize) -> [u8; 4] {
    let mut copy = record.to_vec();
    copy[at..at + 4].fill(0);
    crc32fast::hash(&copy).to_le_bytes()
}

fn put_crc(record: &mut [u8], at: usize) {
    let sum = crc(record, at);
    record[at..at + 4].copy_from_slice(&sum);
}

/// Entries of key tables still to be laid out.
struct Layout {
    tables: Vec<Vec<u8>>,
    objects: Vec<Vec<u8>>,
}

fn u32_of(number: usize) -> [u8; 4] {
    u32::try_from(number).expect("small").to_le_bytes()
}

impl Layout {
    /// Puts an entry and gives back its table and place.
    fn put(
        &mut self,
        parent: (u16, u32),
        order: u32,
        name: &str,
        kind: u8,
        data: &[u8],
        flags: u8,
    ) -> (u16, u32) {
        let length = 21 + name.len() + 1 + data.len();
        let is_full = |table: &Vec<u8>| table.len() + length + 22 > PAGE;
        if self.tables.last().is_none_or(is_full) {
            let index = u16::try_from(self.tables.len() + 1).expect("few");
            let mut head = vec![2, 0];
            head.extend(index.to_le_bytes());
            head.extend([7, 0, 0, 0, 0, 0]);
            put_crc(&mut head, 6);
            self.tables.push(head);
        }
        let index = u16::try_from(self.tables.len()).expect("few");
        let table = self.tables.last_mut().expect("there is one");
        let at = u32::try_from(table.len()).expect("small");
        let mut entry = vec![kind, flags];
        entry.extend(u32_of(length));
        entry.extend(parent.0.to_le_bytes());
        entry.extend(parent.1.to_le_bytes());
        entry.extend([0; 4]);
        entry.extend(order.to_le_bytes());
        entry.push(u8::try_from(name.len() + 1).expect("short"));
        entry.extend(name.as_bytes());
        entry.push(0);
        entry.extend(data);
        put_crc(&mut entry, 12);
        table.extend(entry);
        (index, at)
    }

    fn put_all(&mut self, parent: (u16, u32), entries: &[(String, V)]) {
        for (order, (name, value)) in (1..).zip(entries) {
            let long = |units: Vec<u8>| {
                let mut data = u32_of(units.len()).to_vec();
                data.extend(units);
                data
            };
            let (kind, data) = match value {
                V::Integer(number) => (3, number.to_le_bytes().to_vec()),
                V::Double(number) => (5, number.to_le_bytes().to_vec()),
                V::Bool(flag) => (8, u32::from(*flag).to_le_bytes().to_vec()),
                V::Text(text) => {
                    let units = text
                        .encode_utf16()
                        .chain([0])
                        .flat_map(u16::to_le_bytes)
                        .collect();
                    (6, long(units))
                }
                V::Bytes(bytes) => (7, long(bytes.clone())),
                V::Node(below) => {
                    let place = self.put(parent, order, name, 9, &[0; 12], 0);
                    self.put_all(place, below);
                    continue;
                }
            };
            if data.len() < 2048 {
                self.put(parent, order, name, kind, &data, 0);
                continue;
            }
            // Its own object; where it will lie follows from how many are before it.
            let bytes = data[4..].to_vec();
            let mut pointer = u32_of(bytes.len()).to_vec();
            pointer.extend((OBJECTS_AT + self.objects.len() * 4 * PAGE).to_le_bytes());
            assert!(bytes.len() <= 4 * PAGE);
            self.objects.push(bytes);
            self.put(parent, order, name, kind, &pointer, 1);
        }
    }
}

const TABLES_AT: usize = 3 * PAGE;
const LOG_AT: usize = 32 * PAGE;
const OBJECTS_AT: usize = 48 * PAGE;

/// A container of a format version.
pub fn container(root: &V, version: u32) -> Built {
    let V::Node(entries) = root else {
        panic!("a node")
    };
    let mut layout = Layout {
        tables: Vec::new(),
        objects: Vec::new(),
    };
    layout.put_all((0, 0), entries);
    let mut bytes = vec![0; OBJECTS_AT + layout.objects.len() * 4 * PAGE];
    let mut objects = Vec::new();
    let mut object = |kind: u8, at: usize, size: usize| {
        let mut entry = vec![kind, 0, 0, 0, 0];
        entry.extend(at.to_le_bytes());
        entry.extend(u32_of(size));
        entry.push(1);
        put_crc(&mut entry, 1);
        objects.extend(entry);
    };
    for (index, table) in layout.tables.iter().enumerate() {
        let at = TABLES_AT + index * PAGE;
        assert!(at < LOG_AT);
        bytes[at..at + table.len()].copy_from_slice(table);
        let rest = PAGE - table.len();
        bytes[at + table.len()] = 1;
        bytes[at + table.len() + 2..at + table.len() + 6].copy_from_slice(&u32_of(rest));
        object(2, at, PAGE);
    }
    for (index, object_bytes) in layout.objects.iter().enumerate() {
        let at = OBJECTS_AT + index * 4 * PAGE;
        bytes[at..at + object_bytes.len()].copy_from_slice(object_bytes);
        object(3, at, 4 * PAGE);
    }
    object(0, 0, 0);
    let mut table = 0x0111_0001_u32.to_le_bytes().to_vec();
    table.extend(u32_of(objects.len() / 18));
    table.extend(objects);
    bytes[2 * PAGE..2 * PAGE + table.len()].copy_from_slice(&table);
    for (copy, sequence) in [(0_usize, 6_u16), (PAGE, 7)] {
        let mut head = 0x0128_2014_u32.to_le_bytes().to_vec();
        head.extend([0; 4]);
        head.extend(sequence.to_le_bytes());
        head.extend(version.to_le_bytes());
        head.extend([0; 8]);
        head.extend(u32_of(PAGE));
        head.extend(LOG_AT.to_le_bytes());
        head.extend(LOG_BYTES.to_le_bytes());
        head.extend(u32_of(PAGE));
        put_crc(&mut head, 4);
        bytes[copy..copy + 46].copy_from_slice(&head);
    }
    log(&mut bytes, LOG_AT, &[]);
    Built {
        bytes,
        key_table: TABLES_AT,
        log: LOG_AT,
    }
}

/// Writes a log with pending entries.
pub fn log(bytes: &mut [u8], log: usize, entries: &[(usize, &[u8])]) {
    let mut head = 0x0111_0003_u32.to_le_bytes().to_vec();
    head.extend([0; 4]);
    head.extend(u32_of(entries.len()));
    head.push(0);
    head.extend(145_u32.to_le_bytes());
    head.extend([0; 17]);
    put_crc(&mut head, 4);
    bytes[log..log + 34].copy_from_slice(&head);
    let mut data_at = PAGE;
    for (index, (target, data)) in entries.iter().enumerate() {
        let mut entry = target.to_le_bytes().to_vec();
        entry.extend(u32_of(data.len()));
        entry.extend(data_at.to_le_bytes());
        entry.extend([0; 4]);
        entry.extend(crc32fast::hash(data).to_le_bytes());
        put_crc(&mut entry, 20);
        let at = log + 34 + index * 28;
        bytes[at..at + 28].copy_from_slice(&entry);
        bytes[log + data_at..log + data_at + data.len()].copy_from_slice(data);
        data_at += data.len();
    }
}

/// Makes the checksums of headers, object entries and keys right, so that lies reach what lies behind them.
pub fn fix_checksums(bytes: &mut [u8]) {
    for at in [0, PAGE] {
        put_crc(&mut bytes[at..at + 46], 4);
    }
    let mut at = 2 * PAGE + 8;
    while at + 18 <= 3 * PAGE {
        put_crc(&mut bytes[at..at + 18], 1);
        if bytes[at] == 2 {
            let offset = u64::from_le_bytes(bytes[at + 5..at + 13].try_into().expect("8"));
            if let Ok(offset) = usize::try_from(offset)
                && offset.saturating_add(PAGE) <= bytes.len()
            {
                fix_keys(&mut bytes[offset..offset + PAGE]);
            }
        }
        at += 18;
    }
}

fn fix_keys(table: &mut [u8]) {
    put_crc(&mut table[..10], 6);
    let mut at = 10;
    while at + 22 < table.len() {
        let size = u32::from_le_bytes(table[at + 2..at + 6].try_into().expect("4")) as usize;
        if size < 22 || size > table.len() - at {
            return;
        }
        put_crc(&mut table[at..at + size], 12);
        at += size;
    }
}

/// The same as XML.
pub fn xml(root: &V) -> String {
    let mut text = String::from("<?xml version=\"1.0\"?>\r\n<!-- by hand -->\r\n");
    let V::Node(entries) = root else {
        panic!("a node")
    };
    write(&mut text, entries);
    text
}

fn write(text: &mut String, entries: &[(String, V)]) {
    for (name, value) in entries {
        let (kind, body) = match value {
            V::Integer(number) => ("integer", number.to_string()),
            V::Double(number) => ("double", number.to_string()),
            V::Bool(flag) => ("bool", if *flag { "True" } else { "False" }.to_owned()),
            V::Text(content) => (
                "string",
                content
                    .replace('&', "&amp;")
                    .replace('<', "&lt;")
                    .replace('>', "&#x3E;"),
            ),
            V::Bytes(bytes) => ("bytes", base64(bytes)),
            V::Node(below) => {
                text.push_str(&format!("<{name}>\r\n"));
                write(text, below);
                text.push_str(&format!("</{name}>\r\n"));
                continue;
            }
        };
        text.push_str(&format!("<{name} type=\"{kind}\">{body}</{name}>\r\n"));
    }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let word = part
            .iter()
            .chain([0_u8; 3].iter())
            .take(3)
            .fold(0_usize, |word, byte| word << 8 | usize::from(*byte));
        for index in 0..4 {
            let letter = if index > part.len() {
                b'='
            } else {
                LETTERS[word >> (18 - 6 * index) & 63]
            };
            text.push(char::from(letter));
        }
    }
    text
}

/// UTF-16 with a byte order mark.
pub fn utf16(text: &str) -> Vec<u8> {
    [0xFEFF]
        .into_iter()
        .chain(text.encode_utf16())
        .flat_map(u16::to_le_bytes)
        .collect()
}
