"""The summary of the jobs that would run."""

from densewalk.study.schedule.todo import JobToDo, summary


def test_jobs_are_counted_by_rule_and_reason():
    jobs = [JobToDo("train_dora", "not started", "dora", seed) for seed in (1, 0)]
    jobs += [JobToDo("train_dora", "made by another configuration", "other", 0), JobToDo("report", "not started", "")]
    assert summary(jobs).splitlines() == [
        "to do: 4 jobs",
        "jobs  rule        why                            of",
        "2     train_dora  not started                    dora (0, 1)",
        "1     train_dora  made by another configuration  other (0)",
        "1     report      not started",
    ]


def test_long_lists_are_cut_and_nothing_is_no_line():
    jobs = [JobToDo("train_dora", "not started", f"run{number}", seed) for number in range(9) for seed in range(8)]
    assert "run5 (0, 1, 2, 3, 4, 5, and 2 more), and 3 more" in summary(jobs)
    assert summary([]) == ""
