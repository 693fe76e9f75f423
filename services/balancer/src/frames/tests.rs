use super::*;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const PING: u8 = 6;

fn frame(kind: u8, flags: u8, stream: u32, payload: usize) -> Vec<u8> {
    let mut bytes = (payload as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.resize(HEADER + payload, 0);
    bytes
}

fn frames() -> impl Strategy<Value = Vec<(u8, u8, u32, usize)>> {
    prop::collection::vec((0..12_u8, any::<u8>(), 0..0x7fff_ffff_u32, 0..40_usize), 0..50)
}

proptest! {
    #[test]
    fn each_frame_is_seen_once_however_the_bytes_are_cut(
        frames in frames(), skip in 0..30_usize, cuts in prop::collection::vec(1..50_usize, 1..20),
    ) {
        let mut bytes = vec![0xff; skip];
        for (kind, flags, stream, payload) in &frames {
            bytes.extend(frame(*kind, *flags, *stream, *payload));
        }
        let (mut walk, mut seen) = (Walk::new(skip as u32), Vec::new());
        let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            walk.read(piece, |frame| seen.push((frame.kind, frame.flags, frame.stream, frame.length as usize)));
            rest = later;
        }
        prop_assert!(walk.is_between());
        prop_assert_eq!(seen, frames);
    }

    #[test]
    fn frames_that_cost_something_are_as_many_as_what_explains_them(heads in 0..500_u32, sent in 0..500_u32) {
        let turn = Arc::<Turn>::default();
        let mut counting = Counting::new((), &turn, &Arc::default());
        assert!(counting.hear(&[0; PREFACE as usize]));
        for _ in 0..sent {
            counting.say(&frame(DATA, 0, 1, 3));
        }
        let mut stream = 1;
        for _ in 0..heads {
            assert!(counting.hear(&frame(HEADERS, 4, stream, 3)));
            stream += 2;
            drop(turn.begin());
        }
        let fine = (0..).take_while(|_| counting.hear(&frame(PING, 0, 0, 8))).count();
        prop_assert_eq!(fine as u32, FREE + PER_DATA * sent + PER_HEAD * heads);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_client_may_send_without_a_reason_comes_back_with_time() {
    let mut allowance = Allowance::new(Instant::now());
    for _ in 0..3 {
        assert!((0..FREE).all(|_| allowance.spend(1, Instant::now)));
        assert!(!allowance.spend(1, Instant::now));
        tokio::time::advance(PER - Duration::from_millis(1)).await;
        assert!(!allowance.spend(1, Instant::now));
        tokio::time::advance(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn heads_that_come_to_nothing_cost_more_than_those_that_are_under_way() {
    for becomes in [None, Some(true), Some(false)] {
        let turn = Arc::<Turn>::default();
        let mut counting = Counting::new((), &turn, &Arc::default());
        assert!(counting.hear(&[0; PREFACE as usize]));
        let heads = (0..1_000_u32).take_while(|number| {
            let heard = counting.hear(&frame(HEADERS, 4, 2 * number + 1, 3));
            if let Some(well_formed) = becomes {
                let answering = turn.begin();
                if !well_formed {
                    answering.disown();
                }
            }
            heard
        });
        let heads = heads.count();
        // the first of them have been paid for beforehand, by what every head earns
        let lost = (FREE + UNDER_WAY as u32 * PER_HEAD) / (PER_LOST - PER_HEAD);
        let most = if becomes == Some(true) { 1_000 } else { UNDER_WAY as usize + lost as usize };
        assert_eq!(heads, most, "{becomes:?}");
    }
}

#[tokio::test]
async fn behind_heads_others_have_their_turn_more_often() {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let mut counting = Counting::new(server, &Arc::default(), &Arc::default());
    let mut bytes = vec![0; PREFACE as usize];
    bytes.extend(frame(DATA, 0, 1, 3000));
    bytes.extend((0..10).flat_map(|number| frame(HEADERS, 4, 2 * number + 1, 500)));
    client.write_all(&bytes).await.unwrap();
    let mut space = [0; 2048];
    let mut reads = Vec::new();
    let mut read = 0;
    while read < bytes.len() {
        match futures_util::FutureExt::now_or_never(counting.read(&mut space)) {
            Some(some) => {
                assert_eq!(space[..8], bytes[read..read + 8]);
                read += *some.as_ref().unwrap();
                reads.push(some.unwrap());
            }
            None => reads.push(0),
        }
    }
    let whole = reads.iter().take_while(|read| **read == space.len()).count();
    assert!(whole >= 2, "nothing is slow before the first head: {reads:?}");
    assert!(reads[whole..].chunks_exact(2).all(|pair| pair[0] <= HEADS_TURN && pair[1] == 0), "{reads:?}");
}

#[tokio::test]
async fn uploads_and_ends_of_streams_cost_nothing_but_empty_data_does() {
    let mut counting = Counting::new((), &Arc::default(), &Arc::default());
    assert!(counting.hear(&[0; PREFACE as usize]));
    for _ in 0..2 * FREE {
        assert!(counting.hear(&frame(DATA, 0, 1, 1)));
        assert!(counting.hear(&frame(DATA, END_STREAM, 1, 0)));
        assert!(counting.hear(&frame(CONTINUATION, 0, 1, 0)));
    }
    let fine = (0..).take_while(|_| counting.hear(&frame(DATA, 0, 1, 0))).count();
    assert_eq!(fine as u32, FREE);
}

#[tokio::test]
async fn who_sends_too_many_is_told_so_between_two_frames_of_ours() {
    for (ours, told) in [(frame(DATA, 0, 7, 5), true), (frame(DATA, 0, 7, 5)[..12].to_vec(), false)] {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let flooded = Arc::default();
        let mut counting = Counting::new(server, &Arc::default(), &flooded);
        counting.write_all(&ours).await.unwrap();
        client.write_all(&[0; PREFACE as usize]).await.unwrap();
        client.write_all(&frame(HEADERS, 4, 7, 10)).await.unwrap();
        for _ in 0..FREE + PER_HEAD + PER_DATA + 1 {
            client.write_all(&frame(PING, 0, 0, 8)).await.unwrap();
        }
        let mut all = Vec::new();
        let error = counting.read_to_end(&mut all).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
        assert!(flooded.load(Ordering::Relaxed));
        drop(counting);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0xb];
        assert_eq!(answer[ours.len()..], goaway[..if told { goaway.len() } else { 0 }]);
    }
}
