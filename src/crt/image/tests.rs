//! The image against hostile bytes, and the shape of its tree.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::page::{inner_entries, leaf_records};
use super::*;

const OWNER: Guid = Guid(0x108);
const EXPECTED: Expected = Expected {
    kind: ImageKind::Crt,
    owner: Some(OWNER),
    cluster: ClusterName::NONE,
};

type Records = BTreeMap<Guid, Vec<u8>>;

fn commit(records: Vec<(Guid, Option<Vec<u8>>)>) -> Commit {
    Commit {
        records,
        replace: false,
        cluster: "A".parse().unwrap(),
        meta: b"beside".to_vec(),
        label_s: 9,
    }
}

fn create(records: &Records) -> Image<MemoryStorage> {
    let mut image = Image::create(
        MemoryStorage::default(),
        ImageKind::Crt,
        OWNER,
        commit(Vec::new()),
    )
    .unwrap();
    let records = records.iter().map(|(k, v)| (*k, Some(v.clone())));
    image.commit(commit(records.collect())).unwrap();
    image
}

fn read(bytes: Vec<u8>) -> Result<(Image<MemoryStorage>, Records), ImageError> {
    let mut records = Records::new();
    let image = Image::open(MemoryStorage(bytes), &EXPECTED, |key, value| {
        assert!(value.len() <= MAX_RECORD_BYTES);
        assert!(records.insert(key, value.to_vec()).is_none());
        Ok(())
    })?;
    Ok((image, records))
}

/// `count` records of `len` bytes.
fn records(count: u128, len: usize) -> Records {
    (1..=count)
        .map(|key| (Guid(key * 10), vec![key as u8; len]))
        .collect()
}

/// An image with three levels of which every page can be damaged, and where each page's checksum
/// lies: by page, the offset of the checksum above it.
fn deep() -> (Vec<u8>, BTreeMap<u32, usize>) {
    let image = create(&records(180, 2500));
    let root = image.root.clone();
    assert_eq!(root.height, 3);
    let bytes = image.into_storage().0;
    let top = root.tree.unwrap().page;
    let mut above = BTreeMap::from([(top, root.slot() as usize * PAGE_BYTES + 92)]);
    let mut next = vec![(top, 2)];
    while let Some((at, level)) = next.pop() {
        let offset = at as usize * PAGE_BYTES;
        let page: &Page = bytes[offset..offset + PAGE_BYTES].try_into().unwrap();
        if level == 0 {
            assert!(!leaf_records(page, at).unwrap().is_empty());
            continue;
        }
        for (index, entry) in inner_entries(page, at, level).unwrap().iter().enumerate() {
            above.insert(entry.at.page, offset + 16 + index * 24 + 20);
            next.push((entry.at.page, level - 1));
        }
    }
    (bytes, above)
}

/// Makes every checksum right again from `page` upwards, as somebody would who means harm.
fn forge(bytes: &mut [u8], above: &BTreeMap<u32, usize>, mut page: u32) {
    while page > 1 {
        let offset = page as usize * PAGE_BYTES;
        let crc = crc32fast::hash(&bytes[offset..offset + PAGE_BYTES]);
        let at = above[&page];
        bytes[at..at + 4].copy_from_slice(&crc.to_be_bytes());
        page = (at / PAGE_BYTES) as u32;
    }
    let offset = page as usize * PAGE_BYTES;
    let end = offset + PAGE_BYTES - 4;
    let crc = crc32fast::hash(&bytes[offset..end]);
    bytes[end..end + 4].copy_from_slice(&crc.to_be_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn random_bytes_are_no_image(mut bytes in prop::collection::vec(any::<u8>(), 0..20_000), ours: bool) {
        if ours && bytes.len() >= PAGE_BYTES {
            let whole = create(&records(3, 9)).into_storage().0;
            bytes[..200].copy_from_slice(&whole[..200]);
            forge(&mut bytes, &BTreeMap::new(), 0);
        }
        prop_assert!(read(bytes).is_err());
    }

    #[test]
    fn a_forged_image_does_no_harm(
        harm in prop::collection::vec(
            (any::<prop::sample::Index>(), 0_usize..PAGE_BYTES, any::<u8>(), 0_usize..3),
            1..5,
        ),
    ) {
        thread_local! {
            static DEEP: (Vec<u8>, BTreeMap<u32, usize>) = deep();
        }
        let (mut bytes, above) = DEEP.with(Clone::clone);
        let pages: Vec<u32> = above.keys().copied().chain([0, 0, 0]).collect();
        for (page, offset, value, place) in harm {
            let page = *page.get(&pages);
            // Heads and the first entries or records are where it hurts.
            let offset = offset % [24, 200, PAGE_BYTES][place];
            bytes[page as usize * PAGE_BYTES + offset] = value;
            forge(&mut bytes, &above, page);
        }
        if let Ok((mut image, mut found)) = read(bytes) {
            let key = Guid(4321);
            found.insert(key, vec![7; 2000]);
            found.remove(&Guid(10));
            image.commit(commit(vec![(key, Some(vec![7; 2000])), (Guid(10), None)])).unwrap();
            prop_assert_eq!(read(image.into_storage().0).unwrap().1, found);
        }
    }
}

#[test]
fn a_forged_loop_or_shared_page_is_found() {
    let (bytes, above) = deep();
    let places: Vec<_> = above.iter().map(|(page, at)| (*page, *at)).collect();
    let mut faults = BTreeMap::new();
    for (page, at) in places.iter().step_by(3) {
        for (other, _) in places.iter().step_by(17) {
            let mut bytes = bytes.clone();
            bytes[at - 4..*at].copy_from_slice(&other.to_be_bytes());
            let offset = *other as usize * PAGE_BYTES;
            let crc = crc32fast::hash(&bytes[offset..offset + PAGE_BYTES]);
            bytes[*at..at + 4].copy_from_slice(&crc.to_be_bytes());
            let mut above = above.clone();
            above.insert(*other, *at);
            forge(&mut bytes, &above, (at / PAGE_BYTES) as u32);
            match read(bytes) {
                Ok(_) => assert_eq!(page, other),
                Err(ImageError::Page { fault, .. }) => {
                    *faults.entry(fault.to_string()).or_insert(0) += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(faults.len() > 2, "{faults:?}");
}

#[test]
fn every_damaged_byte_of_every_page_is_noticed() {
    let (bytes, above) = deep();
    for page in above.keys() {
        for offset in [0, 1, 3, 7, 15, 16, 39, 100, 2000, 4095] {
            let mut bytes = bytes.clone();
            bytes[*page as usize * PAGE_BYTES + offset] ^= 0x20;
            assert!(matches!(read(bytes), Err(ImageError::Page { .. })));
        }
    }
}

#[test]
fn what_a_commit_writes_follows_what_changed() {
    #[derive(Default)]
    struct Counting(MemoryStorage, usize);
    impl Storage for Counting {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, buffer)
        }
        fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.1 += bytes.len();
            self.0.write(offset, bytes)
        }
        fn sync(&mut self, offset: u64, len: u64) -> io::Result<()> {
            self.0.sync(offset, len)
        }
        fn grow(&mut self, len: u64) -> io::Result<()> {
            self.0.grow(len)
        }
    }
    let all = commit(
        (0..20_000)
            .map(|key| (Guid(key), Some(vec![1; 250])))
            .collect(),
    );
    let mut image = Image::create(
        Counting::default(),
        ImageKind::Crt,
        OWNER,
        commit(Vec::new()),
    )
    .unwrap();
    image.commit(all).unwrap();
    for key in [0, 777, 19_999, 20_000] {
        image.storage_mut().1 = 0;
        image
            .commit(commit(vec![(Guid(key), Some(vec![2; 250]))]))
            .unwrap();
        assert!(
            image.storage().1 <= 6 * PAGE_BYTES,
            "{} bytes",
            image.storage().1
        );
    }
    // The same once more: only the root.
    image.storage_mut().1 = 0;
    image
        .commit(commit(vec![(Guid(777), Some(vec![2; 250]))]))
        .unwrap();
    assert_eq!(image.storage().1, PAGE_BYTES);
}

#[test]
fn an_image_does_not_grow_with_its_history() {
    let mut image = create(&records(300, 200));
    let before = image.health().page_count;
    for round in 0..2000_u32 {
        let key = Guid(u128::from(round % 300 + 1) * 10);
        image
            .commit(commit(vec![(
                key,
                Some(vec![3; 150 + round as usize % 100]),
            )]))
            .unwrap();
    }
    assert_eq!(image.health().page_count, before);
}

#[test]
fn what_is_removed_gives_its_pages_back() {
    let all = records(3000, 300);
    let mut image = create(&all);
    let full = image.health().live_count;
    // All but every fortieth go, one commit after the other: leaves with one record remain.
    for chunk in all
        .keys()
        .filter(|key| key.0 % 400 != 0)
        .collect::<Vec<_>>()
        .chunks(50)
    {
        image
            .commit(commit(chunk.iter().map(|key| (**key, None)).collect()))
            .unwrap();
    }
    image.commit(commit(Vec::new())).unwrap();
    assert!(image.health().live_count < full / 8, "{:?}", image.health());
    let rest = all
        .into_iter()
        .filter(|(key, _)| key.0 % 400 == 0)
        .collect::<Records>();
    assert_eq!(read(image.storage().0.clone()).unwrap().1, rest);
    let keys: Vec<_> = rest.keys().map(|key| (*key, None)).collect();
    image.commit(commit(keys)).unwrap();
    assert_eq!((image.health().live_count, image.root.height), (0, 0));
    assert!(read(image.into_storage().0).unwrap().1.is_empty());
}

#[test]
fn limits_are_reported_and_nothing_is_changed() {
    let mut image = create(&records(3, 9));
    let before = image.storage().clone();
    let long = commit(vec![(Guid(1), Some(vec![0; MAX_RECORD_BYTES + 1]))]);
    assert!(matches!(
        image.commit(long),
        Err(ImageError::TooLong { len: 2601 })
    ));
    let mut long = commit(Vec::new());
    long.meta = vec![0; MAX_META_BYTES + 1];
    assert!(matches!(
        image.commit(long),
        Err(ImageError::TooLong { .. })
    ));
    assert_eq!(*image.storage(), before);
    let mut most = commit(vec![(Guid(1), Some(vec![5; MAX_RECORD_BYTES]))]);
    most.meta = vec![6; MAX_META_BYTES];
    image.commit(most).unwrap();
    let (image, found) = read(image.into_storage().0).unwrap();
    assert_eq!(found[&Guid(1)], vec![5; MAX_RECORD_BYTES]);
    assert_eq!(image.info().meta, vec![6; MAX_META_BYTES]);
}

#[test]
fn the_last_page_is_the_last() {
    /// Takes any length and keeps nothing.
    #[derive(Default)]
    struct Endless(u64);
    impl Storage for Endless {
        fn len(&self) -> io::Result<u64> {
            Ok(self.0)
        }
        fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn write(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn sync(&mut self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn grow(&mut self, len: u64) -> io::Result<()> {
            self.0 = self.0.max(len);
            Ok(())
        }
    }
    let mut image = Image::create(
        Endless::default(),
        ImageKind::Crt,
        OWNER,
        commit(Vec::new()),
    )
    .unwrap();
    for _ in 2..MAX_PAGES {
        image.allocate().unwrap();
    }
    assert_eq!(image.storage().0, u64::from(MAX_PAGES) * PAGE_BYTES as u64);
    assert!(matches!(image.allocate(), Err(ImageError::Full)));
}

#[test]
fn of_two_values_for_one_key_the_later_counts() {
    let mut image = create(&Records::new());
    let (first, second) = (Some(vec![1]), Some(vec![2]));
    let both = vec![
        (Guid(1), first.clone()),
        (Guid(2), None),
        (Guid(1), second.clone()),
    ];
    image.commit(commit(both)).unwrap();
    assert_eq!(image.get(Guid(1)).unwrap(), second);
    assert_eq!(image.get(Guid(2)).unwrap(), None);
}

/// The file that `docs/crt-format.md` shows, byte by byte: it changes with the version only.
#[test]
fn the_bytes_of_the_format_are_these() {
    let bytes = create(&BTreeMap::from([(Guid(0xabc), b"row".to_vec())]))
        .into_storage()
        .0;
    let root = &bytes[..PAGE_BYTES];
    assert_eq!(root[..8], *b"\x89rma\r\n\x1a\n");
    let mut head = Vec::new();
    for word in [1_u32, 1, 4096, 64] {
        head.extend(word.to_be_bytes()); // version, kind, page size, pages
    }
    for word in [2_u64, 1, 21, 9] {
        head.extend(word.to_be_bytes()); // sequence, records, their bytes, label
    }
    head.extend(OWNER.0.to_be_bytes());
    head.extend(b"A\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let leaf = &bytes[2 * PAGE_BYTES..3 * PAGE_BYTES];
    for word in [2, crc32fast::hash(leaf), 1, 6] {
        head.extend(word.to_be_bytes()); // tree: page, checksum, height; bytes beside
    }
    head.extend([0; 24]);
    head.extend(b"beside");
    assert_eq!(root[8..8 + head.len()], head);
    assert!(root[8 + head.len()..4092].iter().all(|byte| *byte == 0));
    assert_eq!(root[4092..], crc32fast::hash(&root[..4092]).to_be_bytes());
    let mut record = b"L\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\x02".to_vec();
    record.extend(0xabc_u128.to_be_bytes());
    record.extend(b"\0\x03row");
    assert_eq!(leaf[..record.len()], record);
    assert!(leaf[record.len()..].iter().all(|byte| *byte == 0));
}
