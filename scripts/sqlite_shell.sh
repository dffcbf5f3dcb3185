#!/usr/bin/env bash
# Runs the sqlite3 shell of the system twice over a script of schema, bulk insert, index, join, vacuum, dump and restore:
# as it is, and on a heap. What it prints, and the databases it writes, must be the same to the byte.
#
#   scripts/sqlite_shell.sh <build directory>
#
# Exits 1 where they differ, or where the heap did not serve; prints what the shell on the heap says of it.
set -euo pipefail

dir=$(readlink -f "$1")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
preload=$dir/examples/sqlite_preload.so
# What an instrument has compiled needs its runtime before anything else.
if nm -u "$preload" | grep -q __asan_; then
    preload="$(gcc -print-file-name=libasan.so) $preload"
fi

cat > "$scratch/script.sql" << 'END'
create table customer(id integer primary key, name text not null, city text);
create table item(id integer primary key, title text, price int, picture blob);
create table sale(id integer primary key, customer int references customer, item int references item, day int);
begin;
with recursive n(i) as (values(1) union all select i + 1 from n limit 3000)
    insert into customer select i, printf('customer %d', i), 'city ' || (i * 7919 % 53) from n;
with recursive n(i) as (values(1) union all select i + 1 from n limit 500)
    insert into item select i, printf('item %.*c', i % 90 + 1, 'x'), i * 31 % 997, zeroblob(i * 37) from n;
with recursive n(i) as (values(1) union all select i + 1 from n limit 40000)
    insert into sale select i, i * 7 % 3000 + 1, i * 13 % 500 + 1, i % 365 from n;
commit;
create index sale_of_customer on sale(customer, day);
create index customer_of_city on customer(city);
create view turnover as select city, sum(price) as total, count(*) as sales
    from sale join customer on customer.id = sale.customer join item on item.id = sale.item group by city;
create trigger no_free_items before insert on item when new.price < 0 begin select raise(abort, 'a negative price'); end;
select * from turnover order by total desc, city;
select name, group_concat(title, '|') from sale join customer on customer.id = sale.customer
    join item on item.id = sale.item where day < 9 group by name order by name limit 200;
select day, total, sum(total) over (order by day rows 6 preceding)
    from (select day, sum(price) as total from sale join item on item.id = sale.item group by day);
explain query plan select * from sale where customer = 5 and day > 3;
insert into item values (1000, 'broken', -1, null);
select count(*), sum(length(picture)), max(hex(picture)) from item where id < 20;
savepoint s; delete from sale where id % 3 = 0; select count(*) from sale; rollback to s; select count(*) from sale;
update sale set day = day + 1 where id % 5 = 0;
delete from sale where id % 4 = 0;
select json_group_array(json_object('city', city, 'total', total)) from turnover;
pragma integrity_check;
vacuum;
pragma page_count;
.mode csv
.headers on
select * from customer where id % 500 = 0;
END

shell() { # <plain or heap> <database>: on standard input a script; the heap's figures go to heap.err
    local environment=()
    # Leaks of the shell's own are not ours to report.
    [ "$1" = plain ] || environment=("LD_PRELOAD=$preload" ASAN_OPTIONS=detect_leaks=0)
    env -u SQLITE_ALLOCATOR "${environment[@]}" sqlite3 "$scratch/$2.db" 2>> "$scratch/$1.err"
}
work() { # <plain or heap>
    # The script has a statement that is refused, and the shell says so by its status.
    shell "$1" "$1" < "$scratch/script.sql" > "$scratch/$1.out" || echo "status $?" >> "$scratch/$1.out"
    echo .dump | shell "$1" "$1" > "$scratch/$1.dump"
    shell "$1" "$1-restored" < "$scratch/$1.dump" >> "$scratch/$1.out"
    echo 'select count(*), sum(day) from sale; pragma integrity_check;' | shell "$1" "$1-restored" >> "$scratch/$1.out"
}
work plain
work heap

bad=0
for what in .out .dump .db -restored.db; do
    [ -s "$scratch/plain$what" ] || { echo "sqlite_shell: the shell made no plain$what"; bad=1; }
    cmp "$scratch/plain$what" "$scratch/heap$what" || bad=1
done
figures=$(grep '^heap "sqlite": peak ' "$scratch/heap.err") || figures=
# What else it says on standard error is the same, too.
if ! diff "$scratch/plain.err" <(grep -vE '^(heap "sqlite": peak|RESULT) ' "$scratch/heap.err"); then bad=1; fi
if [ "$(grep -c 'live at the end 0 bytes in 0 blocks' <<< "$figures")" != 4 ]; then
    echo "sqlite_shell: a heap serves each of four runs, and is empty at its end: $(cat "$scratch/heap.err")"
    bad=1
fi
echo "$figures"
[ "$bad" = 0 ] || exit 1
echo "sqlite_shell: $(wc -l < "$scratch/plain.out") lines of output, the dump and both databases are the same"
