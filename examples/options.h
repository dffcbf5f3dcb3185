/*
 * Command lines of the examples: a word that is not known, or no number where one is due, ends the
 * program with its usage on standard error and exit code 2; --help prints the usage, and is no
 * error. C and C++.
 */
#ifndef HAK_EXAMPLE_OPTIONS_H
#define HAK_EXAMPLE_OPTIONS_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ends the program because of a word of its command line. */
static inline void options_refuse(const char *usage, const char *word)
{
    int help = strcmp(word, "--help") == 0;
    fprintf(help ? stdout : stderr, "usage: %s\n", usage);
    exit(help ? 0 : 2);
}

/* A number of at most `most`, in decimal digits alone. */
static inline size_t options_number(const char *usage, const char *word, size_t most)
{
    char *end = NULL;
    errno = 0;
    unsigned long number = strtoul(word, &end, 10);
    if (word[0] < '0' || word[0] > '9' || *end || errno || number > most)
        options_refuse(usage, word);
    return number;
}

#endif
