//! "Did you mean": the known name nearest to a mistyped one. Pure.

/// The known key that `wrong` most likely stands for: a similar name in the same section, or the same name in another
/// section.
pub(super) fn nearest_key<'a>(wrong: &str, known: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let (section, name) = split(wrong);
    let siblings = known.clone().filter(|key| split(key).0 == section);
    nearest(name, siblings, |key| split(key).1)
        .or_else(|| known.clone().find(|key| split(key).1 == name))
        .or_else(|| nearest(wrong, known, |key| key))
}

fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>, part: fn(&str) -> &str) -> Option<&'a str> {
    let tolerated = 1 + wrong.chars().count() / 5;
    known
        .map(|key| (distance(wrong, part(key)), key))
        .filter(|(distance, _)| *distance <= tolerated)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, key)| key)
}

fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn one text into the other (optimal string
/// alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut next = vec![i];
        for j in 1..=b.len() {
            let substitution = row[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substitution.min(row[j] + 1).min(next[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEYS: [&str; 5] = ["cluster", "balancer", "balancer.http", "balancer.queue_deadline", "app_server.timeout"];

    #[test]
    fn a_mistyped_key_finds_its_neighbour() {
        let find = |wrong| nearest_key(wrong, KEYS.into_iter());
        assert_eq!(find("balancer.queue_dedaline"), Some("balancer.queue_deadline"));
        assert_eq!(find("balancr"), Some("balancer"));
        assert_eq!(find("timeout"), Some("app_server.timeout"));
        assert_eq!(find("appserver.timeot"), Some("app_server.timeout"));
        assert_eq!(find("balancer.colour"), None);
    }

    proptest! {
        #[test]
        fn distance_is_symmetric_zero_only_for_equals_and_at_most_the_longer_length(a in "[a-c_]{0,8}", b in "[a-c_]{0,8}") {
            let there = distance(&a, &b);
            prop_assert_eq!(there, distance(&b, &a));
            prop_assert_eq!(there == 0, a == b);
            prop_assert!(there <= a.len().max(b.len()));
        }

        #[test]
        fn one_edit_is_distance_one(text in "[a-z]{2,10}", at in 0_usize..10) {
            let mut shorter = text.clone();
            shorter.remove(at % text.len());
            prop_assert_eq!(distance(&text, &shorter), 1);
        }
    }
}
