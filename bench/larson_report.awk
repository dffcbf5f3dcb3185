# Turns the results of one profile into a table, CSV rows or a line of plot data. Called by larson.sh.
#
#   awk -f larson_report.awk -v want=table|csv|plot -v profile=NAME -v order="system mimalloc ..." results
#
# A result is one line of tab-separated fields: profile, round, allocator, status ("ok" or why it failed), and the
# program's key=value pairs. Runs of one round are pairs: ratios are taken within a round, and medians over rounds.
# POSIX awk only.

BEGIN {
    FS = "\t"
    allocators = split(order, allocator_at, " ")
    columns = split("version library mode has_heaps placement heaps threads min max blocks rounds seed lives " \
                    "pairs seconds mps rss_start_kib rss_peak_kib rss_trimmed_kib", column, " ")
    measures = split("mps rss_peak_kib rss_trimmed_kib", measure, " ")
    globals = split("system mimalloc jemalloc tcmalloc", global, " ")
}

$1 == profile {
    if ($2 > last_round) last_round = $2
    status[$3, $2] = $4
    count = split($5, pairs, " ")
    for (i = 1; i <= count; i++) {
        at = index(pairs[i], "=")
        value[$3, $2, substr(pairs[i], 1, at - 1)] = substr(pairs[i], at + 1)
    }
    if ($4 == "ok") {
        has_heaps[$3] = value[$3, $2, "has_heaps"] + 0
        heaps_by_threads[$3] = value[$3, $2, "heaps"] " x " value[$3, $2, "threads"]
        threads_only[$3] = "- x " value[$3, $2, "threads"]
    } else failure[$3] = $4
}

END {
    if (want == "table") print_table()
    else if (want == "csv") print_csv()
    else print_plot()
}

# ---- Samples: a measure of an allocator, or a ratio of two allocators, over the rounds that have it. ----

# Sorts the sample being built; insertion sort, for dozens of values.
function sample_add(x,    i)
{
    for (i = sample_size++; i > 0 && sample[i - 1] > x; i--) sample[i] = sample[i - 1]
    sample[i] = x
}

function sample_of(name, key,    round)
{
    sample_size = 0
    for (round = 1; round <= last_round; round++)
        if (status[name, round] == "ok") sample_add(value[name, round, key] + 0)
    return sample_size
}

function sample_of_ratio(name, base,    round)
{
    sample_size = 0
    for (round = 1; round <= last_round; round++)
        if (status[name, round] == "ok" && status[base, round] == "ok" && value[base, round, "mps"] > 0)
            sample_add(value[name, round, "mps"] / value[base, round, "mps"])
    return sample_size
}

# The value below which a share of the sample lies, interpolated between neighbours.
function quantile(share,    place, below)
{
    place = share * (sample_size - 1)
    below = int(place)
    if (below + 1 >= sample_size) return sample[sample_size - 1]
    return sample[below] + (place - below) * (sample[below + 1] - sample[below])
}

function median_of(name, key) { return sample_of(name, key) ? quantile(0.5) : 0 }

# ---- Table ----

function label(name)
{
    sub(/-/, " ", name)
    return name
}

function megabytes(kib) { return kib > 0 ? sprintf("%.1f", kib / 1024) : "-" }

function print_row(name,    ratio)
{
    printf "%-9s %-16s ", first_row++ ? "" : profile, label(name)
    if (!sample_of(name, "mps")) {
        print "failed: " failure[name]
        return
    }
    ratio = sample_of_ratio(name, "system") ? sprintf("%.2f", quantile(0.5)) : "-"
    printf "%15s %11.1f %12s %16s %11s%s\n", has_heaps[name] ? heaps_by_threads[name] : threads_only[name],
        median_of(name, "mps"), megabytes(median_of(name, "rss_peak_kib")),
        megabytes(median_of(name, "rss_trimmed_kib")), ratio,
        name in failure ? "  some runs failed: " failure[name] : ""
}

# "; <words> = 0.97", with quartiles where there are enough rounds for them to mean something.
function ratio_text(name, base, words,    text)
{
    if (!sample_of_ratio(name, base)) return ""
    text = sprintf("; %s = %.2f", words, quantile(0.5))
    if (sample_size > 2) text = text sprintf(" (%.2f to %.2f)", quantile(0.25), quantile(0.75))
    return text
}

function best_global(    i, mps, best, best_mps)
{
    for (i = 1; i <= globals; i++) {
        mps = median_of(global[i], "mps")
        if (mps > best_mps) {
            best = global[i]
            best_mps = mps
        }
    }
    return best
}

function print_table(    i, best)
{
    for (i = 1; i <= allocators; i++) print_row(allocator_at[i])
    best = best_global()
    print "  best global malloc: " (best ? best : "none") ratio_text("hakheap-fast", best, "hakheap fast / best") \
        ratio_text("hakheap-checked", best, "hakheap checked / best") \
        ratio_text("hakheap-fast", "jemalloc-arenas", "hakheap fast / jemalloc arenas")
}

# ---- CSV: every run, and per allocator the quartiles of what was measured. ----

function print_csv_run(name, round,    i, line)
{
    if (!((name, round) in status)) return
    line = "run," profile "," round "," name "," status[name, round]
    for (i = 1; i <= columns; i++) line = line "," value[name, round, column[i]]
    print line "," (sample_of_ratio_at(name, round))
}

function sample_of_ratio_at(name, round)
{
    if (status[name, round] != "ok" || status["system", round] != "ok") return ""
    return sprintf("%.4f", value[name, round, "mps"] / value["system", round, "mps"])
}

function print_csv_quantile(kind, share, name,    i, line, text)
{
    for (i = 1; i <= measures; i++)
        text[measure[i]] = sample_of(name, measure[i]) ? sprintf("%.3f", quantile(share)) : ""
    line = kind "," profile ",," name "," (sample_size ? "ok" : "failed")
    for (i = 1; i <= columns; i++) line = line "," text[column[i]]
    print line "," (sample_of_ratio(name, "system") ? sprintf("%.4f", quantile(share)) : "")
}

function print_csv(    i, round)
{
    for (round = 1; round <= last_round; round++)
        for (i = 1; i <= allocators; i++) print_csv_run(allocator_at[i], round)
    for (i = 1; i <= allocators; i++) {
        print_csv_quantile("q1", 0.25, allocator_at[i])
        print_csv_quantile("median", 0.5, allocator_at[i])
        print_csv_quantile("q3", 0.75, allocator_at[i])
    }
}

# ---- Plot data: the profile and one median per allocator. ----

function print_plot(    i, line)
{
    line = profile
    for (i = 1; i <= allocators; i++) line = line " " (sample_of(allocator_at[i], "mps") ? quantile(0.5) : "NaN")
    print line
}
