//! Tests of the syntax of cron.

use super::*;

fn refused(text: &str) -> String {
    text.parse::<Cron>().unwrap_err().to_string()
}

fn same(text: &str, meant: &str) {
    let [text, meant] = [text, meant].map(|text| text.parse::<Cron>().unwrap().pattern);
    assert_eq!(text, meant);
}

#[test]
fn names_and_numbers_mean_the_same() {
    same("0 0 * JAN,feb,Mar-may MON-fri", "0 0 * 1,2,3-5 1-5");
    same("0 0 * * 0", "0 0 * * SUN");
    same("0 0 * * 7", "0 0 * * 0");
    same("0 0 * * 5-7", "0 0 * * FRI,SAT,SUN");
    same("0 0 * * FRI-SUN", "0 0 * * 5-7");
    same("0 0 * * SUN-TUE", "0 0 * * 0-2");
    same("0 0 * * SUN-SUN", "0 0 * * SUN");
    same("0 0 * * 0-7", "0 0 * * 0-6");
    same("0-30/10 0 * * *", "0,10,20,30 0 * * *");
    same(" 0\t0  * * * ", "0 0 * * *");
    same("0 1 2 3 * *", "1 2 3 * *");
}

#[test]
fn words_stand_for_expressions() {
    for (word, meant) in WORDS {
        same(word, meant);
        same(&word.to_uppercase(), meant);
    }
    assert_eq!(
        refused("@reboot"),
        "the expression `@reboot` is refused: it is no time of the calendar; start the command \
         with the daemon instead"
    );
    assert!(refused("@fortnightly").contains("@hourly, @daily"));
    assert!(refused("@daily 0").starts_with("the expression `@daily 0` is not known"));
}

#[test]
fn an_error_names_the_field_the_text_and_what_is_allowed() {
    for (text, begins, contains) in [
        ("60 0 * * *", "minute: `60` is refused: ", "0 to 59"),
        ("0 24 * * *", "hour: `24` is refused: ", "0 to 23"),
        ("0 0 0 * *", "day of month: `0` is refused: ", "1 to 31"),
        ("0 0 32 * *", "day of month: `32` is refused: ", "1 to 31"),
        ("0 0 * 13 *", "month: `13` is refused: ", "JAN to DEC"),
        (
            "0 0 * JANUARY *",
            "month: `JANUARY` is refused: ",
            "JAN to DEC",
        ),
        ("0 0 * * 8", "day of week: `8` is refused: ", "0 to 7"),
        (
            "0 0 * * JAN",
            "day of week: `JAN` is refused: ",
            "SUN to SAT",
        ),
        ("60 0 0 * * *", "second: `60` is refused: ", "0 to 59"),
        ("1,,2 0 * * *", "minute: `` is refused: ", "0 to 59"),
        ("1, 0 * * *", "minute: `` is refused: ", "0 to 59"),
        ("+1 0 * * *", "minute: `+1` is refused: ", "0 to 59"),
        ("-1 0 * * *", "minute: `-1` is refused: ", "0 to 59"),
        (
            "5/15 0 * * *",
            "minute: `5/15` is refused: ",
            "FIRST-LAST/STEP",
        ),
        ("0 22-2 * * *", "hour: `22-2` is refused: ", "two ranges"),
        (
            "0 0 * * 5-0",
            "day of week: `5-0` is refused: ",
            "two ranges",
        ),
        ("*/0 0 * * *", "minute: `*/0` is refused: ", "1 to 59"),
        ("*/60 0 * * *", "minute: `*/60` is refused: ", "1 to 59"),
        ("*/5/5 0 * * *", "minute: `*/5/5` is refused: ", "1 to 59"),
        ("1-2-3 0 * * *", "minute: `1-2-3` is refused: ", "0 to 59"),
        ("? 0 * * *", "minute: `?` is refused: ", "0 to 59"),
        ("0 0 L * *", "day of month: `L` is refused: ", "1 to 31"),
        ("0 0 * * 5#2", "day of week: `5#2` is refused: ", "0 to 7"),
        (
            "99999999999 0 * * *",
            "minute: `99999999999` is refused: ",
            "0 to 59",
        ),
        (
            "\u{1b}[31m 0 * * *",
            "minute: `\\u{1b}[31m` is refused: ",
            "0 to 59",
        ),
        ("0 0 * *", "the expression has 4 fields", "5 (minute"),
        (
            "0 0 * * * * 2026",
            "the expression has 7 fields",
            "6 with the second first",
        ),
        (" ", "the expression is empty", "30 2 * * *"),
    ] {
        let said = refused(text);
        assert!(
            said.starts_with(begins) && said.contains(contains),
            "{text}: {said}"
        );
    }
}

#[test]
fn the_thirtieth_of_february_is_refused_at_once() {
    for text in [
        "0 0 30 2 *",
        "0 0 31 4,6,9,11 *",
        "0 0 30-31 FEB */2",
        "* * * 30 2 *",
    ] {
        let said = refused(text);
        assert!(said.contains("never comes"), "{text}: {said}");
        assert!(said.contains(text), "{text}: {said}");
    }
    // Mondays in February are enough, since neither begins with `*`.
    assert!("0 0 30 2 1".parse::<Cron>().is_ok());
    assert!("0 0 29 2 *".parse::<Cron>().is_ok());
}

#[test]
fn the_text_is_kept() {
    let cron: Cron = " @daily\n".parse().unwrap();
    assert_eq!(cron.text(), "@daily");
}
