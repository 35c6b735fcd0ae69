//! Makes BitLocker volumes out of plain ones, since nothing outside Windows does.
//!
//! Written from the format specification of libbde; dislocker reads what it makes, which is what it is held against.
//! The places of the metadata must be zeros in the plain volume: then what is read back is the whole of it.

use aes::cipher::{BlockCipherEncrypt, KeyInit};
use ccm::aead::AeadInOut;
use ccm::consts::{U12, U16};
use sha2::{Digest, Sha256};

/// Sectors of the volumes made.
pub const SECTOR: usize = 512;
/// Where the copies of the metadata go, and the first sectors.
pub const PLACES: [u64; 3] = [3 << 20, 5 << 20, 7 << 20];
pub const MOVED_TO: u64 = 13 << 20;
/// Where the record of a conversion goes, its bitmap, and the log of that.
pub const CONVERSION: u64 = 15 << 20;
const BITMAP: u64 = CONVERSION + 8192;
const LOG: u64 = CONVERSION + 16_384;
pub const LOG_BYTES: u64 = 65_536;

const MASTER_KEY: [u8; 32] = [0x5A; 32];
const KEY_ID: [u8; 16] = *b"0123456789abcdef";

/// What protects it.
#[derive(Clone)]
pub enum Protection {
    Password(&'static str),
    Recovery([u16; 8]),
    StartupKey([u8; 32]),
    Suspended,
    Tpm,
}

/// How the volume looks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Vista,
    Seven,
    ToGo,
    /// Converted in chunks, the even ones of which are done.
    OnWrite {
        chunk_bytes: u64,
    },
}

#[derive(Clone)]
pub struct Recipe {
    pub method: u16,
    pub layout: Layout,
    pub protections: Vec<Protection>,
    /// State, and how far the volume is encrypted.
    pub state: u16,
    pub watermark: Option<u64>,
    pub moved_sectors: u32,
}

impl Recipe {
    /// A finished volume of Windows 7.
    pub fn of(method: u16, protections: &[Protection]) -> Self {
        Self {
            method,
            layout: Layout::Seven,
            protections: protections.to_vec(),
            state: 4,
            watermark: None,
            moved_sectors: 16,
        }
    }
}

/// The digits of a recovery password.
pub fn digits(groups: [u16; 8]) -> String {
    groups
        .map(|group| format!("{:06}", u32::from(group) * 11))
        .join("-")
}

fn entry(role: u16, kind: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in [data.len() as u16 + 8, role, kind, 1] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(data);
    bytes
}

fn key_entry(role: u16, method: u16, key: &[u8]) -> Vec<u8> {
    let mut data = method.to_le_bytes().to_vec();
    data.extend([0, 0]);
    data.extend(key);
    entry(role, 1, &data)
}

/// A key, encrypted with another. The nonce must differ each time.
fn wrapped(role: u16, method: u16, key: &[u8], with: &[u8; 32], count: u32) -> Vec<u8> {
    let mut plain = key_entry(0, method, key);
    let mut nonce = [0_u8; 12];
    nonce[..8].copy_from_slice(&0x01CF_7E60_7D89_2C00_u64.to_le_bytes());
    nonce[8..].copy_from_slice(&count.to_le_bytes());
    let cipher = ccm::Ccm::<aes::Aes256, U16, U12>::new_from_slice(with).expect("32 bytes");
    let code = cipher
        .encrypt_inout_detached(&nonce.into(), &[], plain.as_mut_slice().into())
        .expect("short");
    let mut data = nonce.to_vec();
    data.extend(code);
    data.extend(plain);
    entry(role, 5, &data)
}

fn stretched(first: &[u8], salt: &[u8; 16]) -> [u8; 32] {
    let mut last = [0_u8; 32];
    for round in 0..1_u64 << 20 {
        let mut hasher = Sha256::new();
        hasher.update(last);
        hasher.update(first);
        hasher.update(salt);
        hasher.update(round.to_le_bytes());
        last = hasher.finalize().into();
    }
    last
}

fn protector(protection: &Protection, count: u32) -> Vec<u8> {
    let salt = [count as u8; 16];
    let salt_entry = || {
        let mut data = 0x1000_u16.to_le_bytes().to_vec();
        data.extend([0, 0]);
        data.extend(salt);
        entry(0, 3, &data)
    };
    let mut id = KEY_ID;
    id[0] = count as u8;
    let (number, mut inner, key) = match protection {
        Protection::Password(text) => {
            let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let first = Sha256::digest(Sha256::digest(&units));
            (0x2000_u16, salt_entry(), stretched(&first, &salt))
        }
        Protection::Recovery(groups) => {
            let bits: Vec<u8> = groups
                .iter()
                .flat_map(|group| group.to_le_bytes())
                .collect();
            let first = Sha256::digest(&bits);
            (0x0800, salt_entry(), stretched(&first, &salt))
        }
        Protection::StartupKey(key) => (0x0200, Vec::new(), *key),
        Protection::Suspended => (0, key_entry(0, 0x2000, &[9; 32]), [9; 32]),
        Protection::Tpm => (0x0100, entry(0, 6, &[0; 64]), [1; 32]),
    };
    if !matches!(protection, Protection::Tpm) {
        inner.extend(wrapped(0, 0x2003, &MASTER_KEY, &key, count));
    }
    let mut data = id.to_vec();
    data.extend([0; 10]);
    data.extend(number.to_le_bytes());
    data.extend(inner);
    entry(2, 8, &data)
}

/// The file of a startup key: for the protector at this place of the recipe, from one.
pub fn startup_file(key: &[u8; 32], count: u32) -> Vec<u8> {
    let mut id = KEY_ID;
    id[0] = count as u8;
    let mut data = id.to_vec();
    data.extend([0; 8]);
    data.extend(entry(
        0,
        2,
        &"ExternalKey\0"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect::<Vec<_>>(),
    ));
    data.extend(key_entry(0, 0x2002, key));
    dataset(&entry(6, 9, &data), 0)
}

fn dataset(entries: &[u8], method: u16) -> Vec<u8> {
    let length = entries.len() as u32 + 48;
    let mut bytes = Vec::new();
    for number in [length, 1, 48, length] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(*b"a volume's id 16");
    bytes.extend(8_u32.to_le_bytes());
    bytes.extend(method.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(0x01CF_7E60_7D89_2C00_u64.to_le_bytes());
    bytes.extend(entries);
    bytes
}

/// The key of the volume, as long as its method stores it.
fn volume_key(method: u16) -> Vec<u8> {
    let length = match method {
        0x8000 | 0x8001 | 0x8005 => 64,
        0x8002 => 16,
        _ => 32,
    };
    (0..length).map(|at| (at * 7 + 3) as u8).collect()
}

fn metadata(recipe: &Recipe, size_bytes: u64, mirror_cluster: u64) -> Vec<u8> {
    let mut entries = Vec::new();
    for (count, protection) in (1..).zip(&recipe.protections) {
        entries.extend(protector(protection, count));
    }
    let count = recipe.protections.len() as u32 + 1;
    let key = volume_key(recipe.method);
    entries.extend(wrapped(3, recipe.method, &key, &MASTER_KEY, count));
    let is_vista = recipe.layout == Layout::Vista;
    if !is_vista {
        let mut data = MOVED_TO.to_le_bytes().to_vec();
        data.extend((u64::from(recipe.moved_sectors) * SECTOR as u64).to_le_bytes());
        entries.extend(entry(15, 15, &data));
    }
    let set = dataset(&entries, recipe.method);
    let length = (64 + set.len()).next_multiple_of(16);
    let (version, said) = if is_vista {
        (1_u16, length)
    } else {
        (2, length / 16)
    };
    let mut bytes = b"-FVE-FS-".to_vec();
    for number in [said as u16, version, recipe.state, recipe.state] {
        bytes.extend(number.to_le_bytes());
    }
    let watermark = recipe
        .watermark
        .unwrap_or(if is_vista { 0 } else { size_bytes });
    bytes.extend(watermark.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(if is_vista { 0 } else { recipe.moved_sectors }.to_le_bytes());
    for place in PLACES {
        bytes.extend(place.to_le_bytes());
    }
    bytes.extend(if is_vista { mirror_cluster } else { MOVED_TO }.to_le_bytes());
    bytes.extend(set);
    bytes.resize(length, 0);
    let sum = crc32fast::hash(&bytes);
    let hash = Sha256::digest(&bytes);
    let rest = if is_vista {
        Vec::new()
    } else {
        wrapped(0, 0x2005, &hash, &MASTER_KEY, count + 1)
    };
    bytes.extend((rest.len() as u16 + 8).to_le_bytes());
    bytes.extend(version.to_le_bytes());
    bytes.extend(sum.to_le_bytes());
    bytes.extend(rest);
    bytes
}

fn encrypt_one(key: &[u8], block: [u8; 16]) -> [u8; 16] {
    let mut block = block.into();
    match key.len() {
        16 => aes::Aes128::new_from_slice(key)
            .expect("16")
            .encrypt_block(&mut block),
        _ => aes::Aes256::new_from_slice(key)
            .expect("32")
            .encrypt_block(&mut block),
    }
    block.into()
}

fn diffuse(
    words: &mut [u32],
    turns: [u32; 4],
    rounds: usize,
    step: impl Fn(usize, usize) -> usize,
) {
    for _ in 0..rounds {
        for at in (0..words.len()).rev() {
            let (near, far) = (step(at, 2), step(at, 5));
            let mixed = words[near] ^ words[far].rotate_left(turns[at % 4]);
            words[at] = words[at].wrapping_sub(mixed);
        }
    }
}

fn elephant(key: &[u8], place: u64, sector: &mut [u8]) {
    let low = encrypt_one(key, u128::from(place).to_le_bytes());
    let high = encrypt_one(key, (u128::from(place) | 0x80 << 120).to_le_bytes());
    let sector_key = [low, high].concat();
    for (byte, key) in sector.iter_mut().zip(sector_key.iter().cycle()) {
        *byte ^= key;
    }
    let mut words: Vec<u32> = sector
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().expect("four")))
        .collect();
    let count = words.len();
    diffuse(&mut words, [9, 0, 13, 0], 5, |at, by| {
        (at + count - by) % count
    });
    diffuse(&mut words, [0, 10, 0, 25], 3, |at, by| (at + by) % count);
    for (place, word) in sector.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

/// Encrypts a sector as what lies at this place.
fn encrypt(method: u16, place: u64, sector: &mut [u8]) {
    let key = volume_key(method);
    let half = match method {
        0x8000 | 0x8002 | 0x8004 => 16,
        _ => 32,
    };
    if method >= 0x8004 {
        let number = u128::from(place / SECTOR as u64);
        let mut tweak =
            u128::from_le_bytes(encrypt_one(&key[half..half * 2], number.to_le_bytes()));
        for unit in sector.chunks_exact_mut(16) {
            let plain = u128::from_le_bytes(unit[..].try_into().expect("sixteen"));
            let mixed = encrypt_one(&key[..half], (plain ^ tweak).to_le_bytes());
            unit.copy_from_slice(&(u128::from_le_bytes(mixed) ^ tweak).to_le_bytes());
            tweak = (tweak << 1) ^ if tweak >> 127 == 1 { 0x87 } else { 0 };
        }
        return;
    }
    if method <= 0x8001 {
        elephant(&key[32..32 + half], place, sector);
    }
    let mut last = encrypt_one(&key[..half], u128::from(place).to_le_bytes());
    for unit in sector.chunks_exact_mut(16) {
        for (byte, before) in unit.iter_mut().zip(last) {
            *byte ^= before;
        }
        last = encrypt_one(&key[..half], unit[..].try_into().expect("sixteen"));
        unit.copy_from_slice(&last);
    }
}

fn signed(mut bytes: Vec<u8>, sum_at: usize) -> Vec<u8> {
    bytes[sum_at..sum_at + 4].fill(0);
    let sum = crc32fast::hash(&bytes);
    bytes[sum_at..sum_at + 4].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The record of a conversion with one bitmap; the even chunks are encrypted.
fn conversion(size_bytes: u64, chunk_bytes: u64) -> (Vec<u8>, Vec<u8>) {
    let mut record = b"FVE-EOW\0".to_vec();
    record.extend(56_u16.to_le_bytes());
    record.extend(64_u16.to_le_bytes());
    for number in [512, 512, chunk_bytes as u32, LOG_BYTES as u32, 0, 1, 0] {
        record.extend(number.to_le_bytes());
    }
    for place in [CONVERSION, CONVERSION + 4096, BITMAP] {
        record.extend(place.to_le_bytes());
    }
    let chunks = size_bytes.div_ceil(chunk_bytes) as u32;
    let mut bitmap = vec![0_u8; 512];
    bitmap[..10].copy_from_slice(b"FVE-EOWBM\0");
    bitmap[10..12].copy_from_slice(&60_u16.to_le_bytes());
    bitmap[12..16].copy_from_slice(&1536_u32.to_le_bytes());
    bitmap[28..36].copy_from_slice(&size_bytes.to_le_bytes());
    bitmap[36..44].copy_from_slice(&LOG.to_le_bytes());
    for (at, number) in [(44, 512_u32), (48, 1024), (52, 512)] {
        bitmap[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    let mut bitmap = signed(bitmap, 56);
    // An old one, in which all is encrypted, and the one that counts.
    for (sequence, bits) in [(4_u64, 0xFF_u8), (5, 0x55)] {
        let mut record = vec![0_u8; 512];
        record[..10].copy_from_slice(b"FVE-EOWBR\0");
        record[10..12].copy_from_slice(&36_u16.to_le_bytes());
        record[12..16].copy_from_slice(&512_u32.to_le_bytes());
        record[16..20].copy_from_slice(&chunks.to_le_bytes());
        record[20..28].copy_from_slice(&sequence.to_le_bytes());
        record[36..36 + chunks.div_ceil(8) as usize].fill(bits);
        bitmap.extend(signed(record, 32));
    }
    (signed(record, 36), bitmap)
}

fn boot(recipe: &Recipe, plain: &[u8]) -> Vec<u8> {
    let mut sector = plain[..SECTOR].to_vec();
    if recipe.layout == Layout::Vista {
        sector[3..11].copy_from_slice(b"-FVE-FS-");
        let cluster = SECTOR as u64 * u64::from(plain[13]);
        sector[56..64].copy_from_slice(&(PLACES[0] / cluster).to_le_bytes());
        return sector;
    }
    // Windows 7 writes fields of FAT32 here.
    sector[..3].copy_from_slice(b"\xEB\x58\x90");
    sector[32..SECTOR - 2].fill(0);
    sector[36..40].copy_from_slice(&0x1FE0_u32.to_le_bytes());
    sector[48..52].copy_from_slice(&[1, 0, 6, 0]);
    sector[71..90].copy_from_slice(b"NO NAME    FAT32   ");
    sector[SECTOR - 2..].copy_from_slice(&[0x55, 0xAA]);
    let (name, at): (&[u8; 8], usize) = match recipe.layout {
        Layout::ToGo => (b"MSWIN4.1", 424),
        _ => (b"-FVE-FS-", 160),
    };
    sector[3..11].copy_from_slice(name);
    let id: [u8; 16] = match recipe.layout {
        Layout::OnWrite { .. } => {
            *b"\x3B\x4D\xA8\x92\x80\xDD\x0E\x4D\x9E\x4E\xB1\xE3\x28\x4E\xAE\xD8"
        }
        _ => *b"\x3B\xD6\x67\x49\x29\x2E\xD8\x4A\x83\x99\xF6\xA3\x39\xE3\xD0\x01",
    };
    sector[at..at + 16].copy_from_slice(&id);
    let places = PLACES.into_iter().chain([CONVERSION, CONVERSION + 4096]);
    let count = if matches!(recipe.layout, Layout::OnWrite { .. }) {
        5
    } else {
        3
    };
    for (number, place) in places.take(count).enumerate() {
        let at = at + 16 + number * 8;
        sector[at..at + 8].copy_from_slice(&place.to_le_bytes());
    }
    sector
}

/// Encrypts a plain volume.
pub fn write(plain: &[u8], recipe: &Recipe) -> Vec<u8> {
    let size_bytes = plain.len() as u64;
    let is_vista = recipe.layout == Layout::Vista;
    let is_encrypted = |place: u64| match recipe.layout {
        _ if recipe.state == 1 => false,
        Layout::OnWrite { chunk_bytes } => (place / chunk_bytes).is_multiple_of(2),
        _ => recipe.watermark.is_none_or(|watermark| place < watermark),
    };
    let mut image = plain.to_vec();
    for (number, sector) in image.chunks_exact_mut(SECTOR).enumerate() {
        let place = (number * SECTOR) as u64;
        if is_encrypted(place) && !(is_vista && place < 8192) {
            encrypt(recipe.method, place, sector);
        }
    }
    let mut put = |place: u64, bytes: &[u8], reserved: usize| {
        let at = place as usize;
        let free = &plain[at..at + reserved];
        assert!(free.iter().all(|byte| *byte == 0), "{place} is in use");
        image[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let mirror_cluster = u64::from_le_bytes(plain[56..64].try_into().expect("eight"));
    let metadata = metadata(recipe, size_bytes, mirror_cluster);
    for place in PLACES {
        put(place, &metadata, if is_vista { 16_384 } else { 65_536 });
    }
    if let Layout::OnWrite { chunk_bytes } = recipe.layout {
        let (record, bitmap) = conversion(size_bytes, chunk_bytes);
        put(CONVERSION, &record, 4096);
        put(CONVERSION + 4096, &record, 4096);
        put(BITMAP, &bitmap, 1536);
        put(LOG, b"a log of Windows", LOG_BYTES as usize);
    }
    if !is_vista {
        let length = recipe.moved_sectors as usize * SECTOR;
        let mut moved = plain[..length].to_vec();
        for (number, sector) in moved.chunks_exact_mut(SECTOR).enumerate() {
            let place = MOVED_TO + (number * SECTOR) as u64;
            if is_encrypted(place) {
                encrypt(recipe.method, place, sector);
            }
        }
        put(MOVED_TO, &moved, length);
        // What lies where the first sectors were is not read.
        image[SECTOR..length].fill(0xEE);
    }
    image[..SECTOR].copy_from_slice(&boot(recipe, plain));
    image
}
