//! Larger disks in the same image: bytes, other programs' opinion, and power cuts at every write.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, like tests"
)]

use std::path::Path;
use std::sync::Arc;

use block::{ReadAt, WriteAt};
use vdisk::image::{self, ChildOptions, OpenOptions};
use vdisk::memory::{CrashFile, Loss, MemoryFile};
use vdisk::qcow2::{self, BackingName, Qcow2Options, Qcow2Reader, Qcow2Sources, Qcow2Writer};
use vdisk::vhd::{self, VhdReader, VhdTime, VhdWriter};
use vdisk::vhdx::{self, IdSource, ParentLocator, VhdxReader, VhdxWriter};
use vdisk::{CheckReport, DiskId, ErrorKind, Image, Severity};

use crate::qcow2_tool::{has_qemu, qemu_img};
use crate::vhdx_model::{Step, apply, assert_same, export, options, writable, write, zero};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A format, as far as these tests differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Vhd,
    Vhdx,
    Qcow2,
}

impl Kind {
    fn grow(
        self,
        file: &Arc<dyn WriteAt>,
        parent: Option<Arc<dyn ReadAt>>,
        size: u64,
    ) -> vdisk::Result<()> {
        match self {
            Self::Vhd => vhd::grow(file, parent, size),
            Self::Vhdx => vhdx::grow(file, parent, size, &IdSource::seeded(size)),
            Self::Qcow2 => qcow2::grow(file, parent, size),
        }
    }

    fn reader(
        self,
        file: Arc<dyn ReadAt>,
        parent: Option<Arc<dyn ReadAt>>,
    ) -> vdisk::Result<Box<dyn ReadAt>> {
        Ok(match self {
            Self::Vhd => Box::new(VhdReader::open(file, parent)?),
            Self::Vhdx => Box::new(VhdxReader::open(file, parent)?),
            Self::Qcow2 => {
                let sources = Qcow2Sources {
                    parent,
                    data_file: None,
                };
                Box::new(Qcow2Reader::open_with(file, sources)?)
            }
        })
    }

    fn writer(self, file: Arc<dyn WriteAt>, parent: Option<Arc<dyn ReadAt>>) -> Writer {
        match self {
            Self::Vhd => Writer::Vhd(VhdWriter::open(file, parent).unwrap()),
            Self::Vhdx => {
                Writer::Vhdx(VhdxWriter::open(file, parent, IdSource::seeded(3)).unwrap())
            }
            Self::Qcow2 => Writer::Qcow2(Qcow2Writer::open(file, parent).unwrap()),
        }
    }

    fn check(self, file: Arc<dyn ReadAt>) -> CheckReport {
        match self {
            Self::Vhd => vhd::check(file),
            Self::Vhdx => vhdx::check(&file),
            Self::Qcow2 => qcow2::check(&file),
        }
        .unwrap()
    }
}

enum Writer {
    Vhd(VhdWriter),
    Vhdx(VhdxWriter),
    Qcow2(Qcow2Writer),
}

impl Writer {
    fn disk(&self) -> &dyn WriteAt {
        match self {
            Self::Vhd(writer) => writer,
            Self::Vhdx(writer) => writer,
            Self::Qcow2(writer) => writer,
        }
    }
    fn finish(self) {
        match self {
            Self::Vhd(writer) => writer.finish(),
            Self::Vhdx(writer) => writer.finish(),
            Self::Qcow2(writer) => writer.finish(),
        }
        .unwrap();
    }
}

/// An image, what it lies on, and what it reads as.
struct Sample {
    name: &'static str,
    kind: Kind,
    file: Arc<MemoryFile>,
    parent: Option<Arc<dyn ReadAt>>,
    model: MemoryFile,
    /// Sizes that it grows to, one after the other.
    sizes: Vec<u64>,
}

/// Not the end of a block in any format.
const OLD: u64 = 3 * MIB + 512 * 9;

impl Sample {
    /// Fills an empty image whose parent, if any, holds `below`.
    fn new(
        name: &'static str,
        kind: Kind,
        file: MemoryFile,
        below: Option<MemoryFile>,
        sizes: &[u64],
    ) -> Self {
        let file = Arc::new(file);
        let model = below.clone().unwrap_or_default();
        model.set_size(OLD).unwrap();
        let parent = below.map(|below| Arc::new(below) as Arc<dyn ReadAt>);
        let writer = kind.writer(file.clone(), parent.clone());
        for step in [
            write(100, 9000, 1),
            write(MIB, 3000, 2),
            zero(2 * MIB, 70_000),
            write(OLD - 3 * 512, 3 * 512, 3),
        ] {
            apply(writer.disk(), &step).unwrap();
            apply(&model, &step).unwrap();
        }
        writer.finish();
        Self {
            name,
            kind,
            file,
            parent,
            model,
            sizes: sizes.to_vec(),
        }
    }
}

fn disk_id(n: u128) -> DiskId {
    DiskId(uuid::Uuid::from_u128(n))
}

fn vhd_image(allocation: vhd::Allocation) -> MemoryFile {
    let file = MemoryFile::new();
    let options = vhd::CreateOptions {
        size_bytes: OLD,
        allocation,
        block_bytes: 65536,
        unique_id: disk_id(5),
        time: VhdTime(0),
    };
    vhd::create(&file, &options).unwrap();
    file
}

fn vhdx_image(allocation: vhdx::Allocation) -> MemoryFile {
    let file = Arc::new(MemoryFile::new());
    let mut options = options(OLD);
    options.block_bytes = Some(1 << 20);
    options.allocation = allocation;
    vhdx::create(&writable(&file), &options).unwrap();
    (*file).clone()
}

fn qcow2_image(cluster_bytes: u64, backing: bool, size: u64) -> MemoryFile {
    let file = Arc::new(MemoryFile::new());
    let mut options = Qcow2Options::new(size);
    options.cluster_bytes = cluster_bytes;
    options.backing = backing.then(|| BackingName {
        path: "below".to_owned(),
        format: Some("raw".to_owned()),
    });
    qcow2::create(writable(&file), &options).unwrap();
    (*file).clone()
}

fn below(size: u64) -> MemoryFile {
    let disk = MemoryFile::with_size(size);
    let mut at = 0;
    while at + 70_000 < size {
        apply(&disk, &write(at, 50_000, 9)).unwrap();
        at += 700_000;
    }
    apply(&disk, &write(size - 512, 512, 9)).unwrap();
    disk
}

fn samples() -> Vec<Sample> {
    let linked =
        || vhdx::Allocation::Differencing(ParentLocator::new(vdisk::vhdx::WriteId(disk_id(9).0)));
    let vhd_link = || {
        vhd::Allocation::Differencing(vhd::ParentLink {
            id: disk_id(4),
            time: VhdTime(0),
            relative_path: Some(".\\p.vhd".to_owned()),
            absolute_path: None,
        })
    };
    let near = [OLD + 512, 4 * MIB, 9 * MIB + 512];
    // The first VHDX size beyond needs a longer table than the 1 MiB that a new image has.
    let far = [OLD + 4096, 20 * MIB, 200 * GIB];
    let fixed = vhd_image(vhd::Allocation::Fixed);
    let dynamic = vhd_image(vhd::Allocation::Dynamic);
    let child = vhd_image(vhd_link());
    let mut samples = vec![
        Sample::new("vhd fixed", Kind::Vhd, fixed, None, &near),
        Sample::new(
            "vhd dynamic",
            Kind::Vhd,
            dynamic,
            None,
            &[OLD + 512, 20 * GIB],
        ),
        Sample::new("vhd child", Kind::Vhd, child, Some(below(2 * MIB)), &near),
        Sample::new(
            "vhdx dynamic",
            Kind::Vhdx,
            vhdx_image(vhdx::Allocation::Dynamic),
            None,
            &far,
        ),
        Sample::new(
            "vhdx fixed",
            Kind::Vhdx,
            vhdx_image(vhdx::Allocation::Fixed),
            None,
            &near,
        ),
        Sample::new(
            "vhdx child",
            Kind::Vhdx,
            vhdx_image(linked()),
            Some(below(OLD)),
            &far,
        ),
        Sample::new(
            "vhdx child of a larger disk",
            Kind::Vhdx,
            vhdx_image(linked()),
            Some(below(6 * MIB)),
            &near,
        ),
    ];
    samples.extend(qcow2_samples(&far));
    samples
}

fn qcow2_samples(far: &[u64]) -> Vec<Sample> {
    vec![
        Sample::new(
            "qcow2 of small clusters",
            Kind::Qcow2,
            qcow2_image(512, false, OLD),
            None,
            &[OLD + 512, 9 * MIB, 600 * MIB],
        ),
        Sample::new(
            "qcow2",
            Kind::Qcow2,
            qcow2_image(65536, false, OLD),
            None,
            far,
        ),
        Sample::new(
            "qcow2 child of a larger disk",
            Kind::Qcow2,
            qcow2_image(4096, true, OLD),
            Some(below(6 * MIB)),
            &[OLD + 512, 5 * MIB, 4 * GIB],
        ),
    ]
}

/// The model with another size; what is new is zero.
fn resized(model: &MemoryFile, size: u64) -> MemoryFile {
    let larger = model.clone();
    larger.set_size(size).unwrap();
    larger
}

#[test]
fn a_larger_disk_has_the_old_bytes_and_zeros_behind_them() {
    for sample in samples() {
        let file: Arc<dyn WriteAt> = sample.file.clone();
        let mut model = sample.model.clone();
        for size in &sample.sizes {
            let context = format!("{} of {size}", sample.name);
            sample
                .kind
                .grow(&file, sample.parent.clone(), *size)
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            model = resized(&model, *size);
            let open = || {
                let reader = sample
                    .kind
                    .reader(sample.file.clone(), sample.parent.clone());
                reader.unwrap_or_else(|error| panic!("{context}: {error}"))
            };
            assert_same(&*open(), &model, &context);
            let report = sample.kind.check(sample.file.clone());
            assert!(report.is_clean(), "{context}: {report:?}");

            // It is a disk like any other: written over the seam, at its end, and closed.
            let writer = sample.kind.writer(file.clone(), sample.parent.clone());
            for step in [write(OLD - 600, 100, 7), write(size - 4096, 4096, 8)] {
                apply(writer.disk(), &step).unwrap();
                apply(&model, &step).unwrap();
            }
            writer.finish();
            assert_same(&*open(), &model, &context);
            let report = sample.kind.check(sample.file.clone());
            assert!(report.is_clean(), "{context}: {report:?}");
        }
        let last = *sample.sizes.last().unwrap();
        let before = sample.file.allocated_bytes();
        sample
            .kind
            .grow(&file, sample.parent.clone(), last)
            .unwrap();
        assert_eq!(sample.file.allocated_bytes(), before, "{}", sample.name);
        for wrong in [last - 512, last + 1] {
            let fault = sample.kind.grow(&file, sample.parent.clone(), wrong);
            assert_eq!(
                fault.unwrap_err().kind(),
                ErrorKind::Invalid,
                "{}",
                sample.name
            );
        }
        assert_same(
            &*sample
                .kind
                .reader(sample.file.clone(), sample.parent.clone())
                .unwrap(),
            &model,
            "after what was refused",
        );
    }
}

#[test]
fn a_power_cut_leaves_the_old_vhd_or_the_larger_one() {
    cut_everywhere(Kind::Vhd);
}

#[test]
fn a_power_cut_leaves_the_old_vhdx_or_the_larger_one() {
    cut_everywhere(Kind::Vhdx);
}

#[test]
fn a_power_cut_leaves_the_old_qcow2_or_the_larger_one() {
    cut_everywhere(Kind::Qcow2);
}

/// Enlarges every sample of a format, with the power cut at every write and flush.
fn cut_everywhere(kind: Kind) {
    for sample in samples().into_iter().filter(|sample| sample.kind == kind) {
        let size = sample.sizes[sample.sizes.len() - 1].min(if sample.name.contains("small") {
            9 * MIB
        } else {
            u64::MAX
        });
        let larger = resized(&sample.model, size);
        let mut sizes_seen = [false; 2];
        let mut cut = 0;
        loop {
            let file = Arc::new(CrashFile::new(&sample.file, Some(cut)));
            let target: Arc<dyn WriteAt> = file.clone();
            let done = sample.kind.grow(&target, sample.parent.clone(), size);
            let losses = [
                Loss::Everything,
                Loss::Nothing,
                Loss::Torn { seed: cut },
                Loss::Subset { seed: cut + 1 },
            ];
            for loss in losses {
                let context = format!("{}, cut at {cut}, {loss:?}", sample.name);
                let left = Arc::new(file.survivors(loss).unwrap());
                let open = || {
                    sample
                        .kind
                        .reader(left.clone(), sample.parent.clone())
                        .unwrap_or_else(|error| panic!("{context}: {error}"))
                };
                let found = open();
                let is_larger = found.size_bytes() == size;
                assert!(is_larger || done.is_err(), "{context}: done, and is not");
                assert_same(
                    &*found,
                    if is_larger { &larger } else { &sample.model },
                    &context,
                );
                sizes_seen[usize::from(is_larger)] = true;
                let report = sample.kind.check(left.clone());
                assert!(
                    report.worst < Some(Severity::Damage),
                    "{context}: {report:?}"
                );
                let target: Arc<dyn WriteAt> = left.clone();
                match sample.kind.grow(&target, sample.parent.clone(), size) {
                    Ok(()) => assert_same(&*open(), &larger, &format!("{context}, again")),
                    // Leaked clusters are what a cut may leave; a repair gives them back.
                    Err(_) if sample.kind == Kind::Qcow2 => {
                        qcow2::repair(&*left, vdisk::RepairMode::Lossless).unwrap();
                        sample
                            .kind
                            .grow(&target, sample.parent.clone(), size)
                            .unwrap_or_else(|error| panic!("{context}, again: {error}"));
                        assert_same(&*open(), &larger, &format!("{context}, again"));
                    }
                    Err(error) => panic!("{context}, again: {error}"),
                }
            }
            if done.is_ok() {
                break;
            }
            cut += 1;
        }
        assert!(
            cut > 3 && sizes_seen == [true; 2],
            "{}: {cut} cuts, {sizes_seen:?}",
            sample.name
        );
    }
}

/// QEMU writes such slots; a reader of the small disk never looks at them.
#[test]
fn junk_behind_the_table_of_a_vhdx_does_not_become_part_of_the_disk() {
    const BAT: u64 = 3 * MIB;
    for (lineage, slots) in [
        (vhdx::Allocation::Dynamic, vec![4, 5, 600, 4095]),
        (
            vhdx::Allocation::Differencing(ParentLocator::new(vdisk::vhdx::WriteId(disk_id(9).0))),
            vec![4, 5, 600, 4095, 4097],
        ),
    ] {
        let sample = Sample::new(
            "junk",
            Kind::Vhdx,
            vhdx_image(lineage),
            Some(below(MIB)),
            &[],
        );
        // Without a parent where there is none to be read.
        for slot in slots {
            let junk: u64 = (77 << 20) | 6;
            sample
                .file
                .write_at(BAT + slot * 8, &junk.to_le_bytes())
                .unwrap();
        }
        let file: Arc<dyn WriteAt> = sample.file.clone();
        let parent = sample.parent.clone();
        let before = Kind::Vhdx
            .reader(sample.file.clone(), parent.clone())
            .unwrap();
        let bytes = MemoryFile::with_size(OLD);
        let mut buffer = vec![0; usize::try_from(OLD).unwrap()];
        before.read_at(0, &mut buffer).unwrap();
        bytes.write_at(0, &buffer).unwrap();
        for size in [8 * MIB, 8 * GIB] {
            Kind::Vhdx.grow(&file, parent.clone(), size).unwrap();
            let reader = Kind::Vhdx
                .reader(sample.file.clone(), parent.clone())
                .unwrap();
            assert_same(&*reader, &resized(&bytes, size), "junk");
            assert!(Kind::Vhdx.check(sample.file.clone()).is_clean());
        }
    }
}

fn grow_host_file(path: &Path, size: u64) {
    let options = OpenOptions::default();
    let plan = image::plan_resize(path, size, &options).unwrap();
    image::resize(&plan, &options, &IdSource::seeded(2)).unwrap();
}

#[test]
fn qemu_agrees_with_what_was_enlarged() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    for sample in samples().into_iter().filter(|it| it.parent.is_none()) {
        let (format, sizes) = match (sample.kind, sample.name) {
            (Kind::Vhd, _) => ("vpc", vec![9 * MIB + 512]),
            (Kind::Vhdx, "vhdx fixed") => ("vhdx", vec![20 * MIB]),
            // At last with a longer table at another place.
            (Kind::Vhdx, _) => ("vhdx", vec![70 * MIB + 512, 200 * GIB]),
            (Kind::Qcow2, _) => ("qcow2", vec![300 * MIB]),
        };
        let path = at.join("image");
        export(&*sample.file, &path);
        for size in sizes {
            grow_host_file(&path, size);
            let model = resized(&sample.model, size);
            let image = Image::open(&path, &OpenOptions::default()).unwrap();
            assert_same(&image, &model, sample.name);
            if format != "vpc" {
                qemu_img(at, &format!("check -q -f {format} image"));
            }
            assert_eq!(qemu_size(at, format), size, "{}", sample.name);
            // Reading all of a large VHDX takes QEMU minutes.
            let compared = size.min(GIB);
            export(&resized(&sample.model, compared), &at.join("model"));
            if compared == size {
                qemu_img(at, &format!("compare -q -f {format} -F raw image model"));
            } else {
                let line = format!("image.driver={format},image.file.filename=image");
                let line = line.replace("image.", "file.");
                let line = format!(
                    "compare -q --image-opts driver=raw,size={compared},{line} driver=raw,file.filename=model"
                );
                qemu_img(at, &line);
                let zeros = format!("read -q -P 0 {} {}", size - 4 * MIB, 4 * MIB);
                crate::qcow2_tool::qemu_io(at, "image", format, &[&zeros]);
            }
        }
    }
}

/// The size that QEMU sees.
fn qemu_size(directory: &Path, format: &str) -> u64 {
    let text = qemu_img(directory, &format!("info --output=json -f {format} image"));
    let info: serde_json::Value = serde_json::from_str(&text).unwrap();
    info["virtual-size"].as_u64().unwrap()
}

/// The other way round: what QEMU grew, and what it made, grows here.
#[test]
fn images_that_qemu_made_grow() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let model = below(5 * MIB);
    export(&model, &at.join("model"));
    let shapes: [(&str, &str); 9] = [
        ("vhdx", "subformat=dynamic,block_size=1M"),
        ("vhdx", "subformat=fixed"),
        ("vpc", "subformat=dynamic,force_size=on"),
        ("vpc", "subformat=fixed,force_size=on"),
        ("qcow2", "cluster_size=512"),
        ("qcow2", "cluster_size=2M,refcount_bits=64"),
        ("qcow2", "refcount_bits=1"),
        ("qcow2", "compat=0.10"),
        ("raw", "preallocation=off"),
    ];
    for (format, shape) in shapes {
        qemu_img(
            at,
            &format!("convert -f raw -O {format} -o {shape} model image"),
        );
        for size in [5 * MIB + 512 * 4, 300 * MIB] {
            grow_host_file(&at.join("image"), size);
            let grown = resized(&model, size);
            let image = Image::open(&at.join("image"), &OpenOptions::default()).unwrap();
            assert_same(&image, &grown, &format!("{format} {shape}"));
            export(&grown, &at.join("grown"));
            if format == "vhdx" || format == "qcow2" {
                qemu_img(at, &format!("check -q -f {format} image"));
            }
            assert_eq!(qemu_size(at, format), size, "{format} {shape}");
            qemu_img(at, &format!("compare -q -f {format} -F raw image grown"));
        }
        std::fs::remove_file(at.join("image")).unwrap();
    }
}

/// libvhdi as a third reader.
#[test]
fn libvhdi_reads_what_was_enlarged() {
    let python = |script: &str, arguments: &[&std::ffi::OsStr]| {
        std::process::Command::new("python3")
            .args(["-c", script])
            .args(arguments)
            .output()
    };
    if !python("import pyvhdi", &[]).is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "python3 has no pyvhdi");
        println!("SKIP: python3 has no pyvhdi (pip install libvhdi-python)");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    for sample in samples() {
        if sample.parent.is_some() || sample.kind == Kind::Qcow2 {
            continue;
        }
        // The table of the VHDX is a longer one then, at another place.
        let size = match sample.name {
            "vhdx dynamic" => 200 * GIB,
            _ => 9 * MIB + 512,
        };
        let file: Arc<dyn WriteAt> = sample.file.clone();
        sample.kind.grow(&file, None, size).unwrap();
        export(&*sample.file, &at.join("image"));
        let script = "import sys,pyvhdi\n\
            c=pyvhdi.file();c.open(sys.argv[1])\n\
            n=c.get_media_size()\n\
            open(sys.argv[2],'wb').write(c.read_buffer_at_offset(min(n,16<<20),0))\n\
            print(n, c.read_buffer_at_offset(4096,n-4096)==bytes(4096))";
        let (image, out) = (at.join("image"), at.join("out"));
        let output = python(script, &[image.as_os_str(), out.as_os_str()]).unwrap();
        assert!(
            output.status.success(),
            "{}: {}",
            sample.name,
            String::from_utf8_lossy(&output.stderr)
        );
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert_eq!(said, format!("{size} True"), "{}", sample.name);
        let read = crate::vhdx_model::import(&out);
        assert_same(
            &*read,
            &resized(&sample.model, size.min(16 << 20)),
            sample.name,
        );
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.raw");
    std::fs::write(&path, vec![1; 4096]).unwrap();
    let options = OpenOptions::default();
    for wrong in [0, 512, 4097, u64::MAX] {
        let error = image::plan_resize(&path, wrong, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{wrong}: {error}");
    }
    let error = image::plan_resize(&path, 512, &options).unwrap_err();
    assert!(error.to_string().contains("3584 would be lost"), "{error}");
    let sample = Sample::new(
        "vhd",
        Kind::Vhd,
        vhd_image(vhd::Allocation::Dynamic),
        None,
        &[],
    );
    export(&*sample.file, &path);
    let error = image::plan_resize(&path, 2041 << 30, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let sample = Sample::new(
        "x",
        Kind::Vhdx,
        vhdx_image(vhdx::Allocation::Dynamic),
        None,
        &[],
    );
    export(&*sample.file, &path);
    let error = image::plan_resize(&path, (64 << 40) + 512, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let plan = image::plan_resize(&path, 64 << 40, &options).unwrap();
    assert_eq!((plan.info().size_bytes, plan.size_bytes()), (OLD, 64 << 40));
    let plan = image::plan_resize(&path, 2 << 40, &options).unwrap();
    let report = image::resize(&plan, &options, &IdSource::seeded(1)).unwrap();
    assert_eq!((report.old_size_bytes, report.size_bytes), (OLD, 2 << 40));
    assert!(report.file_bytes > report.old_file_bytes);
    assert_same(
        &Image::open(&path, &options).unwrap(),
        &resized(&sample.model, 2 << 40),
        "2 TiB",
    );
}

/// A parent that reads as the model, and an empty child on it.
fn make_pair(extension: &str, model: &MemoryFile, parent: &Path, child: &Path) {
    match extension {
        "raw" => {
            export(model, parent);
            let file = Arc::new(vdisk::file::HostFile::create_new(child).unwrap());
            let mut creation = Qcow2Options::new(OLD);
            creation.backing = Some(BackingName {
                path: "parent.raw".to_owned(),
                format: Some("raw".to_owned()),
            });
            qcow2::create(file, &creation).unwrap();
        }
        _ => {
            let kind = match extension {
                "vhd" => Kind::Vhd,
                "vhdx" => Kind::Vhdx,
                _ => Kind::Qcow2,
            };
            let file = Arc::new(match kind {
                Kind::Vhd => vhd_image(vhd::Allocation::Dynamic),
                Kind::Vhdx => vhdx_image(vhdx::Allocation::Dynamic),
                Kind::Qcow2 => qcow2_image(65536, false, OLD),
            });
            let writer = kind.writer(file.clone(), None);
            apply(writer.disk(), &write(0, 200_000, 1)).unwrap();
            apply(writer.disk(), &write(OLD - 512, 512, 1)).unwrap();
            writer.finish();
            export(&*file, parent);
            let creation = ChildOptions {
                allocation_unit_bytes: None,
                ids: IdSource::seeded(4),
                unix_seconds: 0,
            };
            image::create_child(child, parent, &OpenOptions::default(), &creation).unwrap();
        }
    }
}

/// A checkpoint may be enlarged while its parent stays as it was; removing it enlarges the parent.
#[test]
fn merging_a_larger_child_enlarges_the_parent() {
    for extension in ["vhd", "vhdx", "qcow2", "raw"] {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let options = OpenOptions::default();
        let model = MemoryFile::with_size(OLD);
        apply(&model, &write(0, 200_000, 1)).unwrap();
        apply(&model, &write(OLD - 512, 512, 1)).unwrap();
        let parent = at(&format!("parent.{extension}"));
        let child = at("child");
        make_pair(extension, &model, &parent, &child);
        let size = 40 * MIB + 512;
        grow_host_file(&child, size);
        let model = resized(&model, size);
        let editor = image::ImageEditor::open(&child, &options, IdSource::seeded(5)).unwrap();
        let steps: [Step; 4] = [
            write(100_000, 4096, 3),
            zero(4096, 8192),
            write(OLD - 1000, 4000, 4),
            write(size - 512, 512, 5),
        ];
        for step in &steps {
            apply(&editor, step).unwrap();
            apply(&model, step).unwrap();
        }
        editor.finish().unwrap();
        assert_same(&Image::open(&child, &options).unwrap(), &model, extension);
        vdisk::merge::merge(
            &child,
            &parent,
            vdisk::merge::MergeStart::Begin,
            &options,
            IdSource::seeded(6),
            &vdisk::convert::NoProgress,
        )
        .unwrap_or_else(|error| panic!("{extension}: {error}"));
        assert_same(&Image::open(&parent, &options).unwrap(), &model, extension);
        assert!(image::check(&parent, &options).unwrap().is_clean());
    }
}

/// QEMU lets an overlay be smaller; its parent then keeps its size, and what lies behind the child's end.
#[test]
fn merging_a_smaller_child_keeps_the_parents_end() {
    let directory = tempfile::tempdir().unwrap();
    let (parent, child) = (directory.path().join("parent"), directory.path().join("c"));
    let model = below(6 * MIB);
    export(&model, &parent);
    let file = Arc::new(vdisk::file::HostFile::create_new(&child).unwrap());
    let mut creation = Qcow2Options::new(OLD);
    creation.backing = Some(BackingName {
        path: "parent".to_owned(),
        format: Some("raw".to_owned()),
    });
    qcow2::create(file, &creation).unwrap();
    let options = OpenOptions::default();
    let editor = image::ImageEditor::open(&child, &options, IdSource::seeded(5)).unwrap();
    for step in [write(1000, 90_000, 3), write(OLD - 512, 512, 5)] {
        apply(&editor, &step).unwrap();
        apply(&model, &step).unwrap();
    }
    editor.finish().unwrap();
    vdisk::merge::merge(
        &child,
        &parent,
        vdisk::merge::MergeStart::Begin,
        &options,
        IdSource::seeded(6),
        &vdisk::convert::NoProgress,
    )
    .unwrap();
    assert_same(&Image::open(&parent, &options).unwrap(), &model, "merged");
}

/// A raw parent may hold, as its guest's bytes, the beginning of an image: the child says that it is raw.
#[test]
fn a_raw_parent_that_looks_like_an_image_is_merged_into_as_raw() {
    let directory = tempfile::tempdir().unwrap();
    let (parent, child) = (directory.path().join("parent"), directory.path().join("c"));
    let model = MemoryFile::with_size(OLD);
    let mut posing = vec![0; 200_000];
    qcow2_image(65536, false, 6 * GIB)
        .read_at(0, &mut posing)
        .unwrap();
    model.write_at(0, &posing).unwrap();
    export(&model, &parent);
    let file = Arc::new(vdisk::file::HostFile::create_new(&child).unwrap());
    let mut creation = Qcow2Options::new(OLD);
    creation.backing = Some(BackingName {
        path: "parent".to_owned(),
        format: Some("raw".to_owned()),
    });
    qcow2::create(file, &creation).unwrap();
    let options = OpenOptions::default();
    let editor = image::ImageEditor::open(&child, &options, IdSource::seeded(5)).unwrap();
    let step = write(MIB, 90_000, 3);
    apply(&editor, &step).unwrap();
    apply(&model, &step).unwrap();
    editor.finish().unwrap();
    vdisk::merge::merge(
        &child,
        &parent,
        vdisk::merge::MergeStart::Begin,
        &options,
        IdSource::seeded(6),
        &vdisk::convert::NoProgress,
    )
    .unwrap();
    assert_same(&*crate::vhdx_model::import(&parent), &model, "merged");
}
