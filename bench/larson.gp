# Draws what larson.sh measured: gnuplot -c bench/larson.gp OUTPUT.svg DATA ALLOCATORS TITLE
# DATA: a header of names, then a row per profile with the median M ops/s of each allocator.
set terminal svg size 1100,480 background rgb 'white' font 'sans,12'
set output ARG1
set title ARG4 noenhanced font ',10'
set style data histogram
set style histogram clustered gap 1
set style fill solid 0.85 noborder
set ylabel 'million malloc + free pairs a second'
set yrange [0:*]
set grid ytics
set key outside right top noenhanced
set xtics nomirror noenhanced
plot for [column = 2:int(ARG3) + 1] ARG2 using column:xtic(1) title columnheader(column)
