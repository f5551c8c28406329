"""log.jsonl, in good and bad times; what a script writes into it is in tests/test_main_moco.py."""

import json

from moco.engine.json_log import JsonLog


def lines(folder):
    def refuse(word):
        raise ValueError(word)

    return [json.loads(line, parse_constant=refuse) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_numbers_that_are_not_finite_are_words(tmp_path):
    log = JsonLog(str(tmp_path))
    log.write("step", loss=float("nan"), top=float("-inf"), step=3, seconds=0.5)
    (line,) = lines(tmp_path)
    assert (line["loss"], line["top"], line["step"], line["seconds"]) == ("nan", "-inf", 3, 0.5)


def test_a_torn_line_tears_no_other(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"kind": "step", "los')
    log = JsonLog(str(tmp_path))
    log._end_torn_line()
    log._end_torn_line()  # once is enough
    log.write("resume")
    torn, whole = (tmp_path / "log.jsonl").read_text().splitlines()
    assert torn == '{"kind": "step", "los' and json.loads(whole)["kind"] == "resume"


def test_an_empty_or_a_missing_file_is_no_torn_one(tmp_path):
    JsonLog(str(tmp_path))._end_torn_line()
    assert not (tmp_path / "log.jsonl").exists()
    (tmp_path / "log.jsonl").touch()
    JsonLog(str(tmp_path))._end_torn_line()
    assert (tmp_path / "log.jsonl").read_text() == ""
    JsonLog(None)._end_torn_line()


def test_a_log_that_can_not_be_written_ends_itself_alone(tmp_path, capsys):
    log = JsonLog(str(tmp_path / "nowhere"))
    log.write("step")
    log.write("step")
    assert capsys.readouterr().out.count("this log ends here") == 1
